#include "pattern.h"

#include <string.h>

#include "loops.h"

/* Bytes before the first whole word when the pattern starts at `offset`, at most `len`. */
static size_t lead_bytes(uint64_t offset, size_t len)
{
    size_t lead = (size_t)(-offset & 7);
    return lead < len ? lead : len;
}

/* Copy part of one word: `len` bytes from byte `skip` on. */
static void part_of_word(unsigned char *out, uint64_t base, uint64_t index, size_t skip, size_t len)
{
    uint64_t word = mkv_pattern_word(base, index);
    memcpy(out, (const unsigned char *)&word + skip, len);
}

static size_t match_part(const unsigned char *data, uint64_t base, uint64_t index, size_t skip,
                         size_t len)
{
    unsigned char right[8];
    size_t done = 0;
    part_of_word(right, base, index, skip, len);
    while (done < len && data[done] == right[done])
        done++;
    return done;
}

void mkv_pattern_fill(void *target, size_t len, uint64_t seed, uint64_t offset)
{
    unsigned char *at = target;
    uint64_t base = mkv_pattern_base(seed), index = offset / 8;
    size_t lead = lead_bytes(offset, len);
    if (lead) {
        part_of_word(at, base, index++, offset & 7, lead);
        at += lead;
        len -= lead;
    }
    mkv_loops()->pattern_fill(at, len / 8, base, index);
    if (len % 8)
        part_of_word(at + len / 8 * 8, base, index + len / 8, 0, len % 8);
}

size_t mkv_pattern_check(const void *data, size_t len, uint64_t seed, uint64_t offset)
{
    const unsigned char *at = data;
    uint64_t base = mkv_pattern_base(seed), index = offset / 8;
    size_t lead = lead_bytes(offset, len), right = 0;
    if (lead) {
        right = match_part(at, base, index++, offset & 7, lead);
        if (right < lead)
            return right;
    }
    size_t words = (len - lead) / 8;
    size_t matched = mkv_loops()->pattern_match(at + lead, words, base, index);
    size_t rest = matched < words ? 8 : (len - lead) % 8;
    right = lead + matched * 8;
    return right + (rest ? match_part(at + right, base, index + matched, 0, rest) : 0);
}
