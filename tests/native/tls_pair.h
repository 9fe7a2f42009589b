/* Contexts of a server and of a client that believes it, for test programs. */
#pragma once
#include <assert.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stddef.h>

#include "stream_tls.h"

struct tls_pair {
    struct mkv_tls *client, *server;
};

static void sign(X509 *certificate, EVP_PKEY *key)
{
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 24 * 3600);
    X509_set_pubkey(certificate, key);
    X509_NAME *name = X509_get_subject_name(certificate);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"test", -1, -1, 0);
    X509_set_issuer_name(certificate, name);
    X509_EXTENSION *names =
        X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "DNS:node.test.memkv");
    assert(names && X509_add_ext(certificate, names, -1));
    X509_EXTENSION_free(names);
    assert(X509_sign(certificate, key, EVP_sha256()) > 0);
}

static struct tls_pair make_tls_pair(void)
{
    char why[MKV_TLS_WHY_BYTES], *certificate_pem, *key_pem;
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    BIO *certificate_bio = BIO_new(BIO_s_mem()), *key_bio = BIO_new(BIO_s_mem());
    assert(key && certificate && certificate_bio && key_bio);
    sign(certificate, key);
    assert(PEM_write_bio_X509(certificate_bio, certificate));
    assert(PEM_write_bio_PrivateKey(key_bio, key, NULL, NULL, 0, NULL, NULL));
    size_t certificate_len = (size_t)BIO_get_mem_data(certificate_bio, &certificate_pem);
    size_t key_len = (size_t)BIO_get_mem_data(key_bio, &key_pem);
    struct tls_pair pair = {
        mkv_tls_client(certificate_pem, certificate_len, "node.test.memkv", why),
        mkv_tls_server(certificate_pem, certificate_len, key_pem, key_len, why),
    };
    assert(pair.client && pair.server);
    BIO_free(certificate_bio);
    BIO_free(key_bio);
    X509_free(certificate);
    EVP_PKEY_free(key);
    return pair;
}

static void free_tls_pair(struct tls_pair pair)
{
    mkv_tls_free(pair.client);
    mkv_tls_free(pair.server);
}
