#include "sums.h"
