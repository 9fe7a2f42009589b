/* One thread's queue of I/O to one file or block device.
 *
 * io_uring where the kernel allows it, else pread/pwrite with the same semantics, executed inside
 * mkv_ring_wait. An operation lives in a slot from its start until its result is taken; the memory
 * it names (not the iovec array, which is copied) must stay valid that long. Not thread-safe. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct mkv_ring;

struct mkv_ring_result {
    uint32_t slot;  /* what the call that started it returned; free for reuse now */
    int32_t result; /* bytes (short counts as they are), or -errno */
};

/* Open a queue of at most `depth` operations on `fd`, which stays the caller's and must outlive the
 * ring. Returns NULL and sets errno only when memory is short: a refused io_uring falls back. */
struct mkv_ring *mkv_ring_open(int fd, unsigned depth, int use_io_uring);

/* Wait for everything in flight, then free. */
void mkv_ring_close(struct mkv_ring *ring);

int mkv_ring_is_io_uring(const struct mkv_ring *ring);

/* Likely cause and fix when io_uring was refused, else "". Lives as long as the ring. */
const char *mkv_ring_fallback_reason(const struct mkv_ring *ring);

unsigned mkv_ring_in_flight(const struct mkv_ring *ring);

/* Register memory so that single-buffer I/O inside it needs no page pinning. Returns 0, or -errno
 * when refused (locked-memory limit, no io_uring): everything works without. The memory must stay
 * mapped until the ring is closed. */
int mkv_ring_register(struct mkv_ring *ring, void *base, size_t length);

/* Hold the file of `fd` open until the next call (-1: nothing), or until every operation in flight
 * has ended when the process is killed. So the peer of a socket sees its end only when nothing is
 * written any more. Returns 0, or -errno when the kernel cannot. */
int mkv_ring_guard(struct mkv_ring *ring, int fd);

/* Start an operation. Return its slot, or -EBUSY when `depth` are in flight, -EINVAL, -ENOMEM. */
int mkv_ring_read(struct mkv_ring *ring, uint64_t offset, const struct iovec *parts,
                  unsigned count);
int mkv_ring_write(struct mkv_ring *ring, uint64_t offset, const struct iovec *parts,
                   unsigned count);
/* fdatasync: covers writes whose results were taken before this call, and no others. */
int mkv_ring_flush(struct mkv_ring *ring);
/* Punch a hole in a file, BLKDISCARD on a block device; -EOPNOTSUPP as the result is harmless. */
int mkv_ring_discard(struct mkv_ring *ring, uint64_t offset, uint64_t length);

/* Hand queued operations to the kernel and take results, at most `capacity`; waits until
 * `min_complete` are there, at most `timeout_ms` (negative: no limit). Returns how many, which may
 * be fewer after a signal, or -errno when the ring itself fails. */
int mkv_ring_wait(struct mkv_ring *ring, struct mkv_ring_result *results, unsigned capacity,
                  unsigned min_complete, int timeout_ms);
