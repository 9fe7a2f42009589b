"""The demonstration: a real pool on one machine, real requests replayed, a node killed and back."""
