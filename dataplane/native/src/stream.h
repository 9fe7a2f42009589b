/* One connected byte stream: a plain socket here, TLS by the same steps in stream_tls.c.
 *
 * A stream owns its fd, which is non-blocking; every wait is a poll() with what is left of the
 * deadline (CLOCK_MONOTONIC, ns), and past the deadline nothing more is read, and nothing is sent
 * but what the first try of a call takes. One thread at
 * a time, except mkv_stream_shutdown, which any thread may call while the stream is not freed.
 * After an error the position in the byte stream is unknown: free the stream. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct mkv_stream;

/* What a kind of stream can do. A step never blocks: it returns bytes moved (> 0), 0 when the peer
 * has closed (receive only), -EAGAIN with the poll `events` to wait for, or another -errno. */
struct mkv_stream_steps {
    ssize_t (*receive)(struct mkv_stream *stream, void *target, size_t len, short *events);
    ssize_t (*send)(struct mkv_stream *stream, const struct iovec *parts, unsigned count,
                    short *events);
    void (*free)(struct mkv_stream *stream); /* what `implementation` holds; the fd is closed by
                                                the caller */
};

/* What must be done beside closing a stream before memory that its peer may write is free: over
 * RDMA the peer writes through a queue pair, which knows nothing of the stream. `close` returns 0
 * when nothing is written any more, and is called again when it does not. No locks are held. */
struct mkv_fence {
    int (*close)(void *context);
    void (*drop)(void *context); /* the last call */
    void *context;
};

struct mkv_stream {
    const struct mkv_stream_steps *steps;
    void *implementation;
    int fd;
    int shut; /* atomic: mkv_stream_shutdown was called */
    uint64_t poll_ns; /* how long a receive looks again and again before it sleeps; 0 at first */
    struct mkv_fence fence;
};

/* Errors beside other -errno values. */
enum {
    MKV_STREAM_TIMEOUT = -110,  /* -ETIMEDOUT: the deadline passed */
    MKV_STREAM_CLOSED = -32,    /* -EPIPE: the peer closed the connection */
    MKV_STREAM_SHUT = -108,     /* -ESHUTDOWN: mkv_stream_shutdown was called here */
    MKV_PASSED_FDS_MAX = 4,
    MKV_STREAM_ANSWERED = -114, /* -EALREADY: see mkv_stream_send_watching */
};

/* Bytes received ahead of need, between `start` and `end`. The owner provides `bytes`. */
struct mkv_inbox {
    uint8_t *bytes;
    size_t capacity, start, end;
};

uint64_t mkv_monotonic_ns(void);

/* Take over `fd` (set non-blocking). Returns NULL and sets errno; the fd is then still the
 * caller's. */
struct mkv_stream *mkv_stream_plain(int fd);

/* Close the fd and free. */
void mkv_stream_free(struct mkv_stream *stream);

/* Wake whoever is inside this stream with MKV_STREAM_SHUT; every later call fails at once. */
void mkv_stream_shutdown(struct mkv_stream *stream);

/* Give a stream its fence, before anybody else has the stream. */
void mkv_stream_set_fence(struct mkv_stream *stream, struct mkv_fence fence);

int mkv_stream_has_fence(const struct mkv_stream *stream);

/* End the connection and close its fence, if it has one. Returns 0; else try again. */
int mkv_stream_close_fence(struct mkv_stream *stream);

/* End the connection (its fence too, in one try), close and free. Closing alone would not end it: a
 * forked child may hold the socket too, and the peer would wait for what never comes. */
void mkv_stream_hang_up(struct mkv_stream *stream);

/* As mkv_stream_plain for a Unix socket, and keep up to MKV_PASSED_FDS_MAX file descriptors that
 * the peer passes; what comes beyond that, or is not taken, is closed. */
struct mkv_stream *mkv_stream_local(int fd);

/* Move the descriptors passed so far to `fds` (room for MKV_PASSED_FDS_MAX), whose owner is the
 * caller now. Returns how many; 0 for other kinds of stream. */
unsigned mkv_stream_take_fds(struct mkv_stream *stream, int *fds);

/* Tell the peer that nothing more is sent; what it sends can still be received. Any thread. */
void mkv_stream_half_close(struct mkv_stream *stream);

/* Receive nothing more: whoever receives sees the end of the stream. What is being sent can still
 * be sent. Any thread. */
void mkv_stream_stop_receiving(struct mkv_stream *stream);

/* Fill `target`. Returns 0 or a negative error. */
int mkv_stream_receive(struct mkv_stream *stream, void *target, size_t len, uint64_t deadline_ns);

/* As receive, and write the chunk sums of the bytes while they are hot (mkv_chunk_count(len)). */
int mkv_stream_receive_and_sum(struct mkv_stream *stream, void *target, size_t len, uint64_t *sums,
                               uint64_t deadline_ns);

/* Take a step that receives until it moved something, as receive_some does. */
typedef ssize_t mkv_receive_step(struct mkv_stream *stream, void *target, size_t len,
                                 short *events);
ssize_t mkv_stream_step(struct mkv_stream *stream, mkv_receive_step *step, void *target, size_t len,
                        uint64_t deadline_ns);

/* Receive 1..len bytes. Returns how many, 0 when the peer has closed, or a negative error. */
ssize_t mkv_stream_receive_some(struct mkv_stream *stream, void *target, size_t len,
                                uint64_t deadline_ns);

/* Receive what is there already: as mkv_stream_receive_some, or -EAGAIN when that is nothing. */
ssize_t mkv_stream_receive_ready(struct mkv_stream *stream, void *target, size_t len);

/* Read and drop. Returns 0 or a negative error. */
int mkv_stream_discard(struct mkv_stream *stream, uint64_t len, uint64_t deadline_ns);

/* Send all parts in order; `parts` is used up (modified). Returns 0 or a negative error. */
int mkv_stream_send(struct mkv_stream *stream, struct iovec *parts, unsigned count,
                    uint64_t deadline_ns);

/* As send, but returns MKV_STREAM_ANSWERED as soon as the peer answers before everything could be
 * sent (it refuses what it did not read): both would otherwise wait for each other for ever. What
 * came is in `inbox`, which must have room. */
int mkv_stream_send_watching(struct mkv_stream *stream, struct iovec *parts, unsigned count,
                             struct mkv_inbox *inbox, uint64_t deadline_ns);

/* Whether an idle stream is still good: 1, or 0 when the peer has closed or sent what nobody asked
 * for. Never blocks. */
int mkv_stream_is_idle(struct mkv_stream *stream);
