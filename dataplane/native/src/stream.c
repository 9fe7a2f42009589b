#define _GNU_SOURCE
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "sums.h"

_Static_assert(MKV_STREAM_TIMEOUT == -ETIMEDOUT && MKV_STREAM_CLOSED == -EPIPE, "see stream.h");
_Static_assert(MKV_STREAM_SHUT == -ESHUTDOWN && MKV_STREAM_ANSWERED == -EALREADY, "see stream.h");

enum { SEND_PARTS_MAX = 64, DISCARD_BYTES = 64 * 1024 };

uint64_t mkv_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* --- the plain kind --- */

static ssize_t plain_receive(struct mkv_stream *stream, void *target, size_t len, short *events)
{
    ssize_t done = recv(stream->fd, target, len, 0);
    if (done >= 0)
        return done;
    *events = POLLIN;
    return errno == EWOULDBLOCK || errno == EINTR ? -EAGAIN : -errno;
}

static ssize_t plain_send(struct mkv_stream *stream, const struct iovec *parts, unsigned count,
                          short *events)
{
    struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = count};
    ssize_t done = sendmsg(stream->fd, &message, MSG_NOSIGNAL);
    if (done >= 0)
        return done;
    *events = POLLOUT;
    return errno == EWOULDBLOCK || errno == EINTR ? -EAGAIN : -errno;
}

static void plain_free(struct mkv_stream *stream)
{
    (void)stream;
}

static const struct mkv_stream_steps plain_steps = {plain_receive, plain_send, plain_free};

struct mkv_stream *mkv_stream_plain(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return NULL;
    struct mkv_stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return NULL;
    stream->steps = &plain_steps;
    stream->fd = fd;
    return stream;
}

/* --- Unix sockets that file descriptors come through --- */

struct passed {
    unsigned count;
    int fds[MKV_PASSED_FDS_MAX];
};

static void keep_fds(struct passed *passed, struct msghdr *message)
{
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (passed->count < MKV_PASSED_FDS_MAX)
                passed->fds[passed->count++] = fd;
            else
                close(fd);
        }
    }
}

static ssize_t local_receive(struct mkv_stream *stream, void *target, size_t len, short *events)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(MKV_PASSED_FDS_MAX * sizeof(int))];
    struct iovec part = {target, len};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    ssize_t done = recvmsg(stream->fd, &message, MSG_CMSG_CLOEXEC);
    if (done < 0) {
        *events = POLLIN;
        return errno == EWOULDBLOCK || errno == EINTR ? -EAGAIN : -errno;
    }
    keep_fds(stream->implementation, &message);
    return done;
}

static void local_free(struct mkv_stream *stream)
{
    struct passed *passed = stream->implementation;
    while (passed->count)
        close(passed->fds[--passed->count]);
    free(passed);
}

static const struct mkv_stream_steps local_steps = {local_receive, plain_send, local_free};

struct mkv_stream *mkv_stream_local(int fd)
{
    struct passed *passed = calloc(1, sizeof *passed);
    if (!passed)
        return NULL;
    struct mkv_stream *stream = mkv_stream_plain(fd);
    if (!stream) {
        free(passed);
        return NULL;
    }
    stream->steps = &local_steps;
    stream->implementation = passed;
    return stream;
}

unsigned mkv_stream_take_fds(struct mkv_stream *stream, int *fds)
{
    if (stream->steps != &local_steps)
        return 0;
    struct passed *passed = stream->implementation;
    unsigned count = passed->count;
    memcpy(fds, passed->fds, count * sizeof *fds);
    passed->count = 0;
    return count;
}

/* --- common to all kinds --- */

void mkv_stream_free(struct mkv_stream *stream)
{
    stream->steps->free(stream);
    close(stream->fd);
    free(stream);
}

void mkv_stream_shutdown(struct mkv_stream *stream)
{
    __atomic_store_n(&stream->shut, 1, __ATOMIC_RELEASE);
    shutdown(stream->fd, SHUT_RDWR);
}

void mkv_stream_set_fence(struct mkv_stream *stream, struct mkv_fence fence)
{
    stream->fence = fence;
}

int mkv_stream_has_fence(const struct mkv_stream *stream)
{
    return stream->fence.close != NULL;
}

int mkv_stream_close_fence(struct mkv_stream *stream)
{
    mkv_stream_shutdown(stream);
    if (!mkv_stream_has_fence(stream))
        return 0;
    if (stream->fence.close(stream->fence.context))
        return -1;
    stream->fence.drop(stream->fence.context);
    stream->fence = (struct mkv_fence){0};
    return 0;
}

void mkv_stream_hang_up(struct mkv_stream *stream)
{
    if (mkv_stream_close_fence(stream))
        stream->fence.drop(stream->fence.context);
    mkv_stream_free(stream);
}

void mkv_stream_half_close(struct mkv_stream *stream)
{
    shutdown(stream->fd, SHUT_WR);
}

void mkv_stream_stop_receiving(struct mkv_stream *stream)
{
    shutdown(stream->fd, SHUT_RD);
}

static int is_shut(const struct mkv_stream *stream)
{
    return __atomic_load_n(&stream->shut, __ATOMIC_ACQUIRE);
}

/* 0 while there is time and the stream is open. */
static int check(const struct mkv_stream *stream, uint64_t deadline_ns)
{
    if (is_shut(stream))
        return MKV_STREAM_SHUT;
    return mkv_monotonic_ns() < deadline_ns ? 0 : MKV_STREAM_TIMEOUT;
}

/* Wait for `events`; returns what came (>= 0, 0 after a signal) or a negative error. */
static int wait_for(const struct mkv_stream *stream, short events, uint64_t deadline_ns)
{
    struct pollfd entry = {.fd = stream->fd, .events = events};
    uint64_t now = mkv_monotonic_ns(), left = deadline_ns - now;
    if (now >= deadline_ns)
        return MKV_STREAM_TIMEOUT;
    struct timespec limit = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
    if (limit.tv_sec > 86400)
        limit.tv_sec = 86400; /* far deadlines overflow the kernel's clock; the caller loops */
    int ready = ppoll(&entry, 1, &limit, NULL);
    if (ready < 0 && errno != EINTR)
        return -errno;
    return ready > 0 ? entry.revents : 0;
}

/* What an error of a step means: after our own shutdown every kind of error is that. */
static int fault_of(const struct mkv_stream *stream, ssize_t error)
{
    return is_shut(stream) ? MKV_STREAM_SHUT : (int)error;
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Look for `stream->poll_ns`; as the step, -EAGAIN when nothing came. */
static ssize_t receive_polling(struct mkv_stream *stream, void *target, size_t len, short *events)
{
    ssize_t done = stream->steps->receive(stream, target, len, events);
    if (done != -EAGAIN || !stream->poll_ns)
        return done;
    uint64_t until = mkv_monotonic_ns() + stream->poll_ns;
    do {
        relax();
        done = stream->steps->receive(stream, target, len, events);
    } while (done == -EAGAIN && !is_shut(stream) && mkv_monotonic_ns() < until);
    return done;
}

ssize_t mkv_stream_step(struct mkv_stream *stream, mkv_receive_step *step, void *target, size_t len,
                        uint64_t deadline_ns)
{
    short events;
    for (;;) {
        int error = check(stream, deadline_ns);
        if (error)
            return error;
        ssize_t done = step(stream, target, len, &events);
        if (done > 0)
            return done;
        if (done != -EAGAIN)
            return fault_of(stream, done);
        error = wait_for(stream, events, deadline_ns);
        if (error < 0)
            return fault_of(stream, error);
    }
}

ssize_t mkv_stream_receive_some(struct mkv_stream *stream, void *target, size_t len,
                                uint64_t deadline_ns)
{
    return mkv_stream_step(stream, receive_polling, target, len, deadline_ns);
}

ssize_t mkv_stream_receive_ready(struct mkv_stream *stream, void *target, size_t len)
{
    short events;
    if (is_shut(stream))
        return MKV_STREAM_SHUT;
    ssize_t done = stream->steps->receive(stream, target, len, &events);
    return done < 0 && done != -EAGAIN ? fault_of(stream, done) : done;
}

int mkv_stream_receive(struct mkv_stream *stream, void *target, size_t len, uint64_t deadline_ns)
{
    char *at = target;
    while (len) {
        ssize_t done = mkv_stream_receive_some(stream, at, len, deadline_ns);
        if (done <= 0)
            return done ? (int)done : MKV_STREAM_CLOSED;
        at += done;
        len -= (size_t)done;
    }
    return 0;
}

int mkv_stream_receive_and_sum(struct mkv_stream *stream, void *target, size_t len, uint64_t *sums,
                               uint64_t deadline_ns)
{
    struct mkv_summer summer;
    char *at = target;
    mkv_summer_start(&summer, sums, mkv_chunk_count(len));
    while (len) {
        /* No more than a chunk at a time, or the first bytes leave the cache before they are
         * summed. */
        size_t want = len < MKV_CHUNK_BYTES ? len : MKV_CHUNK_BYTES;
        ssize_t done = mkv_stream_receive_some(stream, at, want, deadline_ns);
        if (done <= 0)
            return done ? (int)done : MKV_STREAM_CLOSED;
        mkv_summer_feed(&summer, at, (size_t)done);
        at += done;
        len -= (size_t)done;
    }
    mkv_summer_finish(&summer);
    return 0;
}

int mkv_stream_discard(struct mkv_stream *stream, uint64_t len, uint64_t deadline_ns)
{
    char dropped[DISCARD_BYTES];
    while (len) {
        size_t want = len < sizeof dropped ? (size_t)len : sizeof dropped;
        ssize_t done = mkv_stream_receive_some(stream, dropped, want, deadline_ns);
        if (done <= 0)
            return done ? (int)done : MKV_STREAM_CLOSED;
        len -= (uint64_t)done;
    }
    return 0;
}

/* Move what came early into the inbox: 1 when there was something, 0 when there was nothing (a TLS
 * record without data wakes poll as well), or a negative error. */
static int read_answer(struct mkv_stream *stream, struct mkv_inbox *inbox)
{
    short events;
    ssize_t done = stream->steps->receive(stream, inbox->bytes + inbox->end,
                                          inbox->capacity - inbox->end, &events);
    if (done == -EAGAIN)
        return 0;
    if (done <= 0)
        return done ? fault_of(stream, done) : fault_of(stream, MKV_STREAM_CLOSED);
    inbox->end += (size_t)done;
    return 1;
}

static int send_parts(struct mkv_stream *stream, struct iovec *parts, unsigned count,
                      struct mkv_inbox *inbox, uint64_t deadline_ns)
{
    short events;
    int is_tried = 0;
    while (count) {
        if (parts->iov_len == 0) {
            parts++, count--;
            continue;
        }
        /* One try is always made: a thread that lost its processor for a while on the way here must
         * not take an idle peer for one that does not read. */
        int error = check(stream, is_tried ? deadline_ns : UINT64_MAX);
        is_tried = 1;
        if (error)
            return error;
        unsigned batch = count < SEND_PARTS_MAX ? count : SEND_PARTS_MAX;
        ssize_t done = stream->steps->send(stream, parts, batch, &events);
        if (done == -EAGAIN) {
            int came = wait_for(stream, (short)(events | (inbox ? POLLIN : 0)), deadline_ns);
            if (came < 0)
                return fault_of(stream, came);
            if (inbox && (came & (POLLIN | POLLHUP | POLLERR))) {
                error = read_answer(stream, inbox);
                if (error)
                    return error > 0 ? MKV_STREAM_ANSWERED : error;
            }
            continue;
        }
        if (done < 0) {
            /* A peer that refused and closed may have left its answer in our receive queue. */
            if (inbox && !is_shut(stream) && read_answer(stream, inbox) > 0)
                return MKV_STREAM_ANSWERED;
            return fault_of(stream, done);
        }
        for (size_t sent = (size_t)done; sent;) {
            size_t step = sent < parts->iov_len ? sent : parts->iov_len;
            parts->iov_base = (char *)parts->iov_base + step;
            parts->iov_len -= step;
            sent -= step;
            if (parts->iov_len == 0)
                parts++, count--;
        }
    }
    return 0;
}

int mkv_stream_send(struct mkv_stream *stream, struct iovec *parts, unsigned count,
                    uint64_t deadline_ns)
{
    return send_parts(stream, parts, count, NULL, deadline_ns);
}

int mkv_stream_send_watching(struct mkv_stream *stream, struct iovec *parts, unsigned count,
                             struct mkv_inbox *inbox, uint64_t deadline_ns)
{
    return send_parts(stream, parts, count, inbox, deadline_ns);
}

int mkv_stream_is_idle(struct mkv_stream *stream)
{
    char byte;
    ssize_t done = recv(stream->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (is_shut(stream) || done == 0)
        return 0;
    if (done > 0) /* TLS peers may send records without data at any time */
        return stream->implementation != NULL && stream->steps != &local_steps;
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}
