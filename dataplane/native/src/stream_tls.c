#define _GNU_SOURCE
#include "stream_tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
    RECORD_BYTES = 16 * 1024,  /* the longest that TLS allows */
    READ_AHEAD_BYTES = 4 * (RECORD_BYTES + 256),
    NAME_BYTES_MAX = 255,
};

/* AES-GCM keys may protect 2^24.5 records (RFC 8446, 5.5); 2^22 of them are 64 GiB. */
static const uint64_t REKEY_BYTES = 1ull << 36;

/* 128 bit keys first: they are as good, and faster. */
static const char CIPHERS[] =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

struct mkv_tls {
    SSL_CTX *context;
    char name[NAME_BYTES_MAX + 1]; /* of the server; "" for a server itself */
};

struct encrypted {
    SSL *ssl;
    uint64_t sent, rekey_after; /* bytes since the sending keys changed, and when they change */
    char why[MKV_TLS_WHY_BYTES];
    uint8_t first[RECORD_BYTES]; /* small parts of a send travel in one record */
};

/* --- a BIO over the stream's socket: never blocks, raises no SIGPIPE --- */

static int socket_write(BIO *bio, const char *bytes, int len)
{
    int fd = (int)(intptr_t)BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    ssize_t done = send(fd, bytes, (size_t)len, MSG_NOSIGNAL);
    if (done < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        BIO_set_retry_write(bio);
    return (int)done;
}

static int socket_read(BIO *bio, char *bytes, int len)
{
    int fd = (int)(intptr_t)BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    ssize_t done = recv(fd, bytes, (size_t)len, 0);
    if (done < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        BIO_set_retry_read(bio);
    if (done == 0)
        BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
    return (int)done;
}

static long socket_control(BIO *bio, int command, long number, void *pointer)
{
    (void)number;
    (void)pointer;
    if (command == BIO_CTRL_EOF)
        return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
    return command == BIO_CTRL_FLUSH;
}

static BIO_METHOD *socket_method;

__attribute__((constructor)) static void make_socket_method(void)
{
    BIO_METHOD *method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "memkv socket");
    if (method && BIO_meth_set_write(method, socket_write) &&
        BIO_meth_set_read(method, socket_read) && BIO_meth_set_ctrl(method, socket_control))
        socket_method = method;
}

__attribute__((destructor)) static void free_socket_method(void)
{
    BIO_meth_free(socket_method);
}

static BIO *socket_bio(int fd)
{
    BIO *bio = socket_method ? BIO_new(socket_method) : NULL;
    if (bio) {
        BIO_set_data(bio, (void *)(intptr_t)fd);
        BIO_set_init(bio, 1);
    }
    return bio;
}

/* --- contexts --- */

static const char *last_error(void)
{
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());
    return reason ? reason : "unknown reason";
}

/* For keys: an encrypted one must not ask the terminal. */
static int no_password(char *buffer, int size, int is_writing, void *data)
{
    (void)buffer;
    (void)size;
    (void)is_writing;
    (void)data;
    return 0;
}

static SSL_CTX *new_context(const SSL_METHOD *method)
{
    SSL_CTX *context = SSL_CTX_new(method);
    if (!context)
        return NULL;
    if (!SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(context, CIPHERS)) {
        SSL_CTX_free(context);
        return NULL;
    }
    SSL_CTX_set_options(context, SSL_OP_CIPHER_SERVER_PREFERENCE);
    /* Frames have lengths, so an end without a good-bye is noticed where it matters. */
    SSL_CTX_set_options(context, SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(context, 0); /* sessions are never resumed */
    SSL_CTX_set_default_read_buffer_len(context, READ_AHEAD_BYTES);
    SSL_CTX_set_read_ahead(context, 1);
    return context;
}

static struct mkv_tls *wrap(SSL_CTX *context, const char *name, char *why)
{
    struct mkv_tls *tls = context ? calloc(1, sizeof *tls) : NULL;
    if (!tls) {
        SSL_CTX_free(context);
        snprintf(why, MKV_TLS_WHY_BYTES, "no memory for a TLS context");
        return NULL;
    }
    tls->context = context;
    snprintf(tls->name, sizeof tls->name, "%s", name);
    return tls;
}

static struct mkv_tls *refuse(SSL_CTX *context, const char *what, char *why)
{
    snprintf(why, MKV_TLS_WHY_BYTES, "%s (%s)", what, last_error());
    SSL_CTX_free(context);
    ERR_clear_error();
    return NULL;
}

static unsigned add_authorities(SSL_CTX *context, BIO *pem)
{
    unsigned count = 0;
    X509 *authority;
    while ((authority = PEM_read_bio_X509(pem, NULL, no_password, NULL)) != NULL) {
        count += X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority) == 1;
        X509_free(authority);
    }
    return count;
}

struct mkv_tls *mkv_tls_client(const void *authorities, size_t len, const char *name, char *why)
{
    ERR_clear_error();
    SSL_CTX *context = new_context(TLS_client_method());
    if (!context)
        return wrap(NULL, "", why);
    size_t name_len = strlen(name);
    if (name_len == 0 || name_len > NAME_BYTES_MAX)
        return refuse(context, "a server's name has 1 to 255 letters", why);
    BIO *pem = BIO_new_mem_buf(authorities, (int)len);
    unsigned count = pem ? add_authorities(context, pem) : 0;
    BIO_free(pem);
    if (count == 0)
        return refuse(context, "no certificate of an authority in PEM", why);
    /* Whoever is named is believed, one that others have signed as well, as gRPC does. */
    X509_STORE_set_flags(SSL_CTX_get_cert_store(context), X509_V_FLAG_PARTIAL_CHAIN);
    ERR_clear_error(); /* the end of the PEM is one */
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    return wrap(context, name, why);
}

static int use_chain(SSL_CTX *context, BIO *pem)
{
    X509 *leaf = PEM_read_bio_X509_AUX(pem, NULL, no_password, NULL), *next;
    int is_good = leaf && SSL_CTX_use_certificate(context, leaf) == 1;
    X509_free(leaf);
    while (is_good && (next = PEM_read_bio_X509(pem, NULL, no_password, NULL)) != NULL) {
        is_good = SSL_CTX_add1_chain_cert(context, next) == 1;
        X509_free(next);
    }
    return is_good;
}

static int use_key(SSL_CTX *context, BIO *pem)
{
    EVP_PKEY *key = PEM_read_bio_PrivateKey(pem, NULL, no_password, NULL);
    int is_good = key && SSL_CTX_use_PrivateKey(context, key) == 1 &&
                  SSL_CTX_check_private_key(context) == 1;
    EVP_PKEY_free(key);
    return is_good;
}

struct mkv_tls *mkv_tls_server(const void *certificate, size_t certificate_len, const void *key,
                               size_t key_len, char *why)
{
    ERR_clear_error();
    SSL_CTX *context = new_context(TLS_server_method());
    if (!context)
        return wrap(NULL, "", why);
    BIO *chain_pem = BIO_new_mem_buf(certificate, (int)certificate_len);
    BIO *key_pem = BIO_new_mem_buf(key, (int)key_len);
    int has_chain = chain_pem && use_chain(context, chain_pem);
    int has_key = has_chain && key_pem && use_key(context, key_pem);
    BIO_free(chain_pem);
    BIO_free(key_pem);
    if (!has_chain)
        return refuse(context, "no certificate in PEM", why);
    if (!has_key)
        return refuse(context, "no unencrypted key of the certificate in PEM", why);
    ERR_clear_error();
    return wrap(context, "", why);
}

void mkv_tls_free(struct mkv_tls *tls)
{
    if (!tls)
        return;
    SSL_CTX_free(tls->context);
    free(tls);
}

/* --- steps --- */

/* Say what OpenSSL said. */
static void note(struct encrypted *encrypted)
{
    long verdict = SSL_get_verify_result(encrypted->ssl);
    if (verdict != X509_V_OK)
        snprintf(encrypted->why, sizeof encrypted->why, "%s",
                 X509_verify_cert_error_string(verdict));
    else
        snprintf(encrypted->why, sizeof encrypted->why, "%s", last_error());
    ERR_clear_error();
}

static ssize_t fault_of(struct encrypted *encrypted, int result, int io_errno, short *events)
{
    switch (SSL_get_error(encrypted->ssl, result)) {
    case SSL_ERROR_WANT_READ:
        *events = POLLIN;
        return -EAGAIN;
    case SSL_ERROR_WANT_WRITE:
        *events = POLLOUT;
        return -EAGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return MKV_STREAM_CLOSED;
    case SSL_ERROR_SYSCALL:
        ERR_clear_error();
        return io_errno ? -io_errno : MKV_STREAM_CLOSED;
    default:
        note(encrypted);
        return MKV_STREAM_NOT_TLS;
    }
}

static ssize_t tls_receive(struct mkv_stream *stream, void *target, size_t len, short *events)
{
    struct encrypted *encrypted = stream->implementation;
    size_t done = 0;
    ERR_clear_error();
    errno = 0;
    int result = SSL_read_ex(encrypted->ssl, target, len, &done);
    if (result > 0)
        return (ssize_t)done;
    ssize_t fault = fault_of(encrypted, result, errno, events);
    return fault == MKV_STREAM_CLOSED ? 0 : fault;
}

/* Gather what fits the first record, so that a header does not travel in one of its own. Tried
 * again after -EAGAIN the parts are the same, and so is the record. */
static size_t gather(struct encrypted *encrypted, const struct iovec *parts, unsigned count)
{
    size_t filled = 0;
    for (unsigned i = 0; i < count && filled < sizeof encrypted->first; i++) {
        size_t room = sizeof encrypted->first - filled;
        size_t taken = parts[i].iov_len < room ? parts[i].iov_len : room;
        memcpy(encrypted->first + filled, parts[i].iov_base, taken);
        filled += taken;
    }
    return filled;
}

static ssize_t tls_send(struct mkv_stream *stream, const struct iovec *parts, unsigned count,
                        short *events)
{
    struct encrypted *encrypted = stream->implementation;
    const void *source = parts->iov_base;
    size_t len = parts->iov_len, done = 0;
    if (len < sizeof encrypted->first && count > 1) {
        source = encrypted->first;
        len = gather(encrypted, parts, count);
    }
    ERR_clear_error();
    errno = 0;
    /* Not in the middle of a record; then the next call does it. */
    if (encrypted->sent >= encrypted->rekey_after && !SSL_want_write(encrypted->ssl) &&
        SSL_key_update(encrypted->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) == 1)
        encrypted->sent = 0;
    int result = SSL_write_ex(encrypted->ssl, source, len, &done);
    if (result > 0) {
        encrypted->sent += done;
        return (ssize_t)done;
    }
    return fault_of(encrypted, result, errno, events);
}

static void tls_free(struct mkv_stream *stream)
{
    struct encrypted *encrypted = stream->implementation;
    SSL_free(encrypted->ssl); /* says no good-bye: the socket may be shut or full */
    free(encrypted);
}

static const struct mkv_stream_steps tls_steps = {tls_receive, tls_send, tls_free};

static int prepare(struct encrypted *encrypted, int fd, const struct mkv_tls *tls)
{
    BIO *bio = socket_bio(fd);
    encrypted->ssl = SSL_new(tls->context);
    encrypted->rekey_after = REKEY_BYTES;
    if (!bio || !encrypted->ssl) {
        BIO_free(bio);
        return 0;
    }
    SSL_set_bio(encrypted->ssl, bio, bio); /* owns it */
    if (!tls->name[0]) {
        SSL_set_accept_state(encrypted->ssl);
        return 1;
    }
    SSL_set_connect_state(encrypted->ssl);
    SSL_set_hostflags(encrypted->ssl, X509_CHECK_FLAG_NO_WILDCARDS);
    return SSL_set1_host(encrypted->ssl, tls->name) == 1 &&
           SSL_set_tlsext_host_name(encrypted->ssl, tls->name) == 1;
}

struct mkv_stream *mkv_stream_tls(int fd, const struct mkv_tls *tls)
{
    struct encrypted *encrypted = calloc(1, sizeof *encrypted);
    if (!encrypted)
        return NULL;
    struct mkv_stream *stream = prepare(encrypted, fd, tls) ? mkv_stream_plain(fd) : NULL;
    if (!stream) {
        SSL_free(encrypted->ssl);
        free(encrypted);
        ERR_clear_error();
        errno = errno ? errno : ENOMEM;
        return NULL;
    }
    stream->steps = &tls_steps;
    stream->implementation = encrypted;
    return stream;
}

/* --- what streams with TLS can be asked beside --- */

static struct encrypted *encrypted_of(const struct mkv_stream *stream)
{
    return stream->steps == &tls_steps ? stream->implementation : NULL;
}

static ssize_t handshake_step(struct mkv_stream *stream, void *target, size_t len, short *events)
{
    struct encrypted *encrypted = stream->implementation;
    (void)target;
    (void)len;
    ERR_clear_error();
    errno = 0;
    int result = SSL_do_handshake(encrypted->ssl);
    return result == 1 ? 1 : fault_of(encrypted, result, errno, events);
}

int mkv_stream_handshake(struct mkv_stream *stream, uint64_t deadline_ns)
{
    if (!encrypted_of(stream))
        return 0;
    ssize_t done = mkv_stream_step(stream, handshake_step, NULL, 0, deadline_ns);
    return done > 0 ? 0 : done ? (int)done : MKV_STREAM_CLOSED;
}

int mkv_stream_is_ahead(const struct mkv_stream *stream)
{
    struct encrypted *encrypted = encrypted_of(stream);
    return encrypted && SSL_has_pending(encrypted->ssl);
}

const char *mkv_stream_why(const struct mkv_stream *stream)
{
    struct encrypted *encrypted = encrypted_of(stream);
    return encrypted ? encrypted->why : "";
}

void mkv_stream_rekey_after(struct mkv_stream *stream, uint64_t bytes)
{
    struct encrypted *encrypted = encrypted_of(stream);
    if (encrypted)
        encrypted->rekey_after = bytes;
}
