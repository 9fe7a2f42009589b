#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    PARTS_INLINE = 4,           /* a record is a header and a payload; more parts are allocated */
    ARENAS_MAX = 64,            /* registered pieces */
    REASON_BYTES = 400,
    OPERATION_BYTES_MAX = 1 << 30, /* results are 32 bits; the kernel stops at 2 GiB anyway */
};
enum { FILE_PLACE, GUARD_PLACE, FILE_PLACES }; /* of the registered files */
#define ARENA_PIECE_BYTES ((size_t)1 << 30) /* the kernel registers at most 1 GiB a piece */

enum operation { OP_READ, OP_WRITE, OP_FLUSH, OP_DISCARD };

struct slot {
    enum operation operation;
    unsigned count;
    struct iovec *parts; /* inline_parts or allocated */
    struct iovec inline_parts[PARTS_INLINE];
    uint64_t offset, length; /* length: of a discard */
};

struct mkv_ring {
    int fd, is_block, uses_io_uring, has_fixed_file, has_guard;
    unsigned depth, in_flight;
    unsigned ready; /* executed here, results not yet taken */
    struct slot *slots;
    uint32_t *free_slots; /* a stack of depth - in_flight */
    uint32_t *queue;      /* slots to be executed by this thread, oldest first: a circle of depth */
    unsigned queue_head, queue_count;
    struct io_uring uring;
    unsigned arenas;
    int arena_table; /* 0: not yet asked for, 1: there, -1: refused */
    struct iovec arena[ARENAS_MAX];
    char reason[REASON_BYTES];
};

static int read_sysctl_disabled(void)
{
    FILE *file = fopen("/proc/sys/kernel/io_uring_disabled", "r");
    int value = 0;
    if (!file)
        return 0;
    if (fscanf(file, "%d", &value) != 1)
        value = 0;
    fclose(file);
    return value;
}

static void explain(char *reason, int error)
{
    const char *text;
    int disabled = error == EPERM || error == EACCES ? read_sysctl_disabled() : 0;
    switch (error) {
    case EPERM:
    case EACCES:
        text = disabled ? "likely cause: the sysctl kernel.io_uring_disabled; fix: sysctl -w "
                          "kernel.io_uring_disabled=0"
                        : "likely cause: the seccomp profile of the container runtime blocks "
                          "io_uring_setup; fix: run with a profile that allows io_uring_setup, "
                          "io_uring_enter and io_uring_register";
        break;
    case ENOSYS:
        text = "likely cause: a kernel or sandbox without io_uring, or a seccomp profile that "
               "hides it; fix: Linux 5.11 or newer and a profile that allows io_uring_setup";
        break;
    case ENOMEM:
        text = "likely cause: the locked-memory limit; fix: raise it (ulimit -l, LimitMEMLOCK=, "
               "docker --ulimit memlock=-1) or grant CAP_IPC_LOCK";
        break;
    case EMFILE:
    case ENFILE:
        text = "likely cause: no file descriptors left; fix: raise ulimit -n";
        break;
    case EOPNOTSUPP:
        text = "likely cause: a kernel older than 5.11; fix: a newer kernel";
        break;
    default:
        text = "the cause is not known; please report it";
    }
    snprintf(reason, REASON_BYTES, "io_uring is not available (%s); %s; using pread and pwrite",
             strerror(error), text);
}

static int open_io_uring(struct mkv_ring *ring)
{
    int error = io_uring_queue_init(ring->depth, &ring->uring, IORING_SETUP_CLAMP);
    if (error)
        return error;
    /* Waiting with a timeout without it costs an extra operation and a result of its own. */
    if (!(ring->uring.features & IORING_FEAT_EXT_ARG) ||
        ring->uring.sq.ring_entries < ring->depth) {
        io_uring_queue_exit(&ring->uring);
        return -EOPNOTSUPP;
    }
    int files[FILE_PLACES] = {[FILE_PLACE] = ring->fd, [GUARD_PLACE] = -1};
    ring->has_guard = io_uring_register_files(&ring->uring, files, FILE_PLACES) == 0;
    ring->has_fixed_file =
        ring->has_guard || io_uring_register_files(&ring->uring, &ring->fd, 1) == 0;
    return 0;
}

struct mkv_ring *mkv_ring_open(int fd, unsigned depth, int use_io_uring)
{
    struct stat status;
    struct mkv_ring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return NULL;
    ring->fd = fd;
    ring->depth = depth;
    ring->is_block = fstat(fd, &status) == 0 && S_ISBLK(status.st_mode);
    ring->slots = calloc(depth, sizeof *ring->slots);
    ring->free_slots = calloc(depth, sizeof *ring->free_slots);
    ring->queue = calloc(depth, sizeof *ring->queue);
    if (!ring->slots || !ring->free_slots || !ring->queue) {
        mkv_ring_close(ring);
        errno = ENOMEM;
        return NULL;
    }
    for (unsigned i = 0; i < depth; i++)
        ring->free_slots[i] = depth - 1 - i;
    if (use_io_uring) {
        int error = open_io_uring(ring);
        if (error)
            explain(ring->reason, -error);
        else
            ring->uses_io_uring = 1;
    } else {
        snprintf(ring->reason, REASON_BYTES, "io_uring was not asked for; using pread and pwrite");
    }
    return ring;
}

void mkv_ring_close(struct mkv_ring *ring)
{
    struct mkv_ring_result dropped[16];
    while (ring->in_flight && mkv_ring_wait(ring, dropped, 16, 1, -1) >= 0)
        ;
    if (ring->uses_io_uring)
        io_uring_queue_exit(&ring->uring);
    free(ring->slots);
    free(ring->free_slots);
    free(ring->queue);
    free(ring);
}

int mkv_ring_is_io_uring(const struct mkv_ring *ring)
{
    return ring->uses_io_uring;
}

const char *mkv_ring_fallback_reason(const struct mkv_ring *ring)
{
    return ring->reason;
}

unsigned mkv_ring_in_flight(const struct mkv_ring *ring)
{
    return ring->in_flight;
}

int mkv_ring_guard(struct mkv_ring *ring, int fd)
{
    if (!ring->uses_io_uring)
        return 0; /* a thread inside preadv is as good: its process keeps its files until it ends */
    if (!ring->has_guard)
        return -EOPNOTSUPP;
    int done = io_uring_register_files_update(&ring->uring, GUARD_PLACE, &fd, 1);
    return done == 1 ? 0 : done < 0 ? done : -EINVAL;
}

/* --- registered memory --- */

int mkv_ring_register(struct mkv_ring *ring, void *base, size_t length)
{
    unsigned first = ring->arenas, pieces = (length + ARENA_PIECE_BYTES - 1) / ARENA_PIECE_BYTES;
    __u64 tags[ARENAS_MAX] = {0};
    if (!ring->uses_io_uring)
        return -EOPNOTSUPP;
    if (length == 0)
        return -EINVAL;
    if (pieces > ARENAS_MAX - first)
        return -ENOSPC;
    if (ring->arena_table == 0)
        ring->arena_table = io_uring_register_buffers_sparse(&ring->uring, ARENAS_MAX) ? -1 : 1;
    if (ring->arena_table < 0)
        return -EOPNOTSUPP;
    for (unsigned i = 0; i < pieces; i++) {
        size_t at = i * ARENA_PIECE_BYTES;
        ring->arena[first + i].iov_base = (char *)base + at;
        ring->arena[first + i].iov_len =
            length - at < ARENA_PIECE_BYTES ? length - at : ARENA_PIECE_BYTES;
    }
    int done = io_uring_register_buffers_update_tag(&ring->uring, first, &ring->arena[first], tags,
                                                    pieces);
    if (done > 0)
        ring->arenas += done;
    return done < 0 ? done : done == (int)pieces ? 0 : -ENOMEM;
}

static int arena_of(const struct mkv_ring *ring, const struct iovec *part)
{
    uintptr_t at = (uintptr_t)part->iov_base;
    for (unsigned i = 0; i < ring->arenas; i++) {
        uintptr_t base = (uintptr_t)ring->arena[i].iov_base;
        if (at >= base && at - base <= ring->arena[i].iov_len &&
            part->iov_len <= ring->arena[i].iov_len - (at - base))
            return (int)i;
    }
    return -1;
}

/* --- starting --- */

static void prepare(struct mkv_ring *ring, uint32_t index)
{
    struct slot *slot = &ring->slots[index];
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring); /* depth fits: see open_io_uring */
    int fd = ring->has_fixed_file ? FILE_PLACE : ring->fd;
    int write = slot->operation == OP_WRITE;
    int arena = slot->count == 1 ? arena_of(ring, slot->parts) : -1;
    if (slot->operation == OP_FLUSH) {
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    } else if (slot->operation == OP_DISCARD) {
        io_uring_prep_fallocate(sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                (off_t)slot->offset, (off_t)slot->length);
    } else if (slot->count == 1) {
        void *base = slot->parts->iov_base;
        unsigned length = (unsigned)slot->parts->iov_len;
        if (arena >= 0 && write)
            io_uring_prep_write_fixed(sqe, fd, base, length, slot->offset, arena);
        else if (arena >= 0)
            io_uring_prep_read_fixed(sqe, fd, base, length, slot->offset, arena);
        else if (write)
            io_uring_prep_write(sqe, fd, base, length, slot->offset);
        else
            io_uring_prep_read(sqe, fd, base, length, slot->offset);
    } else if (write) {
        io_uring_prep_writev(sqe, fd, slot->parts, slot->count, slot->offset);
    } else {
        io_uring_prep_readv(sqe, fd, slot->parts, slot->count, slot->offset);
    }
    if (ring->has_fixed_file)
        sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, index);
}

/* There is no io_uring operation for BLKDISCARD in the kernels of today's distributions, so a
 * block device's discards go the way of the fallback. */
static int runs_here(const struct mkv_ring *ring, const struct slot *slot)
{
    return !ring->uses_io_uring || (ring->is_block && slot->operation == OP_DISCARD);
}

static int start(struct mkv_ring *ring, enum operation operation, uint64_t offset, uint64_t length,
                 const struct iovec *parts, unsigned count)
{
    if (ring->in_flight == ring->depth)
        return -EBUSY;
    uint32_t index = ring->free_slots[ring->depth - ring->in_flight - 1];
    struct slot *slot = &ring->slots[index];
    slot->parts = slot->inline_parts;
    if (count > PARTS_INLINE) {
        slot->parts = malloc(count * sizeof *parts);
        if (!slot->parts)
            return -ENOMEM;
    }
    if (count)
        memcpy(slot->parts, parts, count * sizeof *parts);
    slot->operation = operation;
    slot->count = count;
    slot->offset = offset;
    slot->length = length;
    ring->in_flight++;
    if (runs_here(ring, slot))
        ring->queue[(ring->queue_head + ring->queue_count++) % ring->depth] = index;
    else
        prepare(ring, index);
    return (int)index;
}

static int start_transfer(struct mkv_ring *ring, enum operation operation, uint64_t offset,
                          const struct iovec *parts, unsigned count)
{
    uint64_t total = 0;
    if (count == 0 || count > 1024 /* IOV_MAX */ || offset > INT64_MAX - OPERATION_BYTES_MAX)
        return -EINVAL;
    for (unsigned i = 0; i < count; i++) {
        if (parts[i].iov_len > OPERATION_BYTES_MAX)
            return -EINVAL;
        total += parts[i].iov_len;
    }
    if (total > OPERATION_BYTES_MAX)
        return -EINVAL;
    return start(ring, operation, offset, 0, parts, count);
}

int mkv_ring_read(struct mkv_ring *ring, uint64_t offset, const struct iovec *parts, unsigned count)
{
    return start_transfer(ring, OP_READ, offset, parts, count);
}

int mkv_ring_write(struct mkv_ring *ring, uint64_t offset, const struct iovec *parts,
                   unsigned count)
{
    return start_transfer(ring, OP_WRITE, offset, parts, count);
}

int mkv_ring_flush(struct mkv_ring *ring)
{
    return start(ring, OP_FLUSH, 0, 0, NULL, 0);
}

int mkv_ring_discard(struct mkv_ring *ring, uint64_t offset, uint64_t length)
{
    if (length == 0 || offset > INT64_MAX || length > INT64_MAX - offset)
        return -EINVAL;
    return start(ring, OP_DISCARD, offset, length, NULL, 0);
}

/* --- finishing --- */

static int32_t execute(const struct mkv_ring *ring, const struct slot *slot)
{
    uint64_t range[2] = {slot->offset, slot->length};
    ssize_t done = -1;
    do {
        switch (slot->operation) {
        case OP_READ:
            done = preadv(ring->fd, slot->parts, (int)slot->count, (off_t)slot->offset);
            break;
        case OP_WRITE:
            done = pwritev(ring->fd, slot->parts, (int)slot->count, (off_t)slot->offset);
            break;
        case OP_FLUSH:
            done = fdatasync(ring->fd);
            break;
        case OP_DISCARD:
            done = ring->is_block ? ioctl(ring->fd, BLKDISCARD, range)
                                  : fallocate(ring->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                              (off_t)slot->offset, (off_t)slot->length);
            break;
        }
    } while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : (int32_t)done;
}

static void give(struct mkv_ring *ring, uint32_t index, int32_t result,
                 struct mkv_ring_result *target)
{
    struct slot *slot = &ring->slots[index];
    if (slot->parts != slot->inline_parts)
        free(slot->parts);
    ring->in_flight--;
    ring->free_slots[ring->depth - ring->in_flight - 1] = index;
    target->slot = index;
    target->result = result;
}

/* Execute what waits for this thread: at least one, so that a caller who polls makes progress, and
 * no more than asked for, so that the first results are not held back by the last. */
static unsigned execute_queue(struct mkv_ring *ring, struct mkv_ring_result *results,
                              unsigned capacity, unsigned min_complete)
{
    unsigned wanted = min_complete ? min_complete : 1, done = 0;
    while (done < wanted && done < capacity && ring->queue_count) {
        uint32_t index = ring->queue[ring->queue_head];
        ring->queue_head = (ring->queue_head + 1) % ring->depth;
        ring->queue_count--;
        give(ring, index, execute(ring, &ring->slots[index]), &results[done++]);
    }
    return done;
}

static unsigned take(struct mkv_ring *ring, struct mkv_ring_result *results, unsigned capacity)
{
    struct io_uring_cqe *cqe;
    unsigned done = 0;
    while (done < capacity && io_uring_peek_cqe(&ring->uring, &cqe) == 0) {
        give(ring, (uint32_t)cqe->user_data, cqe->res, &results[done++]);
        io_uring_cqe_seen(&ring->uring, cqe);
    }
    return done;
}

int mkv_ring_wait(struct mkv_ring *ring, struct mkv_ring_result *results, unsigned capacity,
                  unsigned min_complete, int timeout_ms)
{
    struct __kernel_timespec limit = {timeout_ms / 1000, timeout_ms % 1000 * 1000000LL};
    struct io_uring_cqe *cqe;
    int error;
    if (min_complete > ring->in_flight)
        min_complete = ring->in_flight;
    if (min_complete > capacity)
        min_complete = capacity;
    unsigned done = execute_queue(ring, results, capacity, min_complete);
    if (!ring->uses_io_uring)
        return (int)done;
    done += take(ring, results + done, capacity - done);
    if (done >= min_complete || timeout_ms == 0)
        error = io_uring_submit(&ring->uring);
    else
        error = io_uring_submit_and_wait_timeout(&ring->uring, &cqe, min_complete - done,
                                                 timeout_ms < 0 ? NULL : &limit, NULL);
    done += take(ring, results + done, capacity - done);
    if (error < 0 && error != -ETIME && error != -EINTR && error != -EAGAIN && error != -EBUSY)
        return done ? (int)done : error;
    return (int)done;
}
