/* TLS 1.3 for streams, by OpenSSL.
 *
 * A context is one role: a client that believes some authorities and expects one name, or a server
 * with its certificate. Streams keep what they need of it, so it may be freed, or replaced by one
 * with newer files, while they live. Contexts are for any thread. */
#pragma once
#include <stddef.h>

#include "stream.h"

enum { MKV_TLS_WHY_BYTES = 240, MKV_STREAM_NOT_TLS = -71 /* -EPROTO: TLS failed; see why */ };

struct mkv_tls;

/* Certificates in PEM that are believed; `name` must be in the server's certificate. Returns NULL
 * and says why. */
struct mkv_tls *mkv_tls_client(const void *authorities, size_t len, const char *name, char *why);

/* Certificate (others of its chain after it) and key in PEM. Returns NULL and says why. */
struct mkv_tls *mkv_tls_server(const void *certificate, size_t certificate_len, const void *key,
                               size_t key_len, char *why);

void mkv_tls_free(struct mkv_tls *tls);

/* As mkv_stream_plain. The handshake is made with the first bytes that are sent or received, or by
 * mkv_stream_handshake. */
struct mkv_stream *mkv_stream_tls(int fd, const struct mkv_tls *tls);

/* Make the handshake. Returns 0 or a negative error; nothing to do on a plain stream. */
int mkv_stream_handshake(struct mkv_stream *stream, uint64_t deadline_ns);

/* Whether more may be there than poll() tells: bytes that came with what was received before. */
int mkv_stream_is_ahead(const struct mkv_stream *stream);

/* What was wrong after MKV_STREAM_NOT_TLS; "" for a plain stream. Lives as long as the stream. */
const char *mkv_stream_why(const struct mkv_stream *stream);

/* For tests: change the sending keys after so many bytes. */
void mkv_stream_rekey_after(struct mkv_stream *stream, uint64_t bytes);
