/* SHA-256 (FIPS 180-4) of two streams at a time, by the processor's own instructions.
 *
 * One stream leaves the unit idle between dependent rounds; a second fills the gaps, so two take
 * hardly longer than one. hashing.py uses it where the processor can, hashlib elsewhere; but for
 * hashes that go on in another process, whose state hashlib does not tell: those are plain C there.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HERE 1
#include <cpuid.h>
#include <immintrin.h>
#define ALIGNED __attribute__((aligned(16)))
#else
#define HERE 0
#define ALIGNED
#endif

static const uint32_t K[64] ALIGNED = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t turned(uint32_t x, int by) { return x >> by | x << (32 - by); }

static void plain(uint32_t *state, const unsigned char *data, Py_ssize_t count) {
    for (; count; count--, data += 64) {
        uint32_t w[64], v[8];
        memcpy(v, state, sizeof v);
        for (int i = 0; i < 64; i++) {
            if (i < 16) {
                const unsigned char *at = data + 4 * i;
                w[i] = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
            } else {
                uint32_t a = w[i - 15], b = w[i - 2];
                a = turned(a, 7) ^ turned(a, 18) ^ a >> 3;
                b = turned(b, 17) ^ turned(b, 19) ^ b >> 10;
                w[i] = w[i - 16] + a + w[i - 7] + b;
            }
            uint32_t e = v[4], a = v[0];
            uint32_t first = v[7] + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) +
                             ((e & v[5]) ^ (~e & v[6])) + K[i] + w[i];
            uint32_t second = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) +
                              ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
            memmove(v + 1, v, 7 * sizeof *v);
            v[4] += first;
            v[0] = first + second;
        }
        for (int i = 0; i < 8; i++) state[i] += v[i];
    }
}

#if HERE
#define WITH_SHA __attribute__((target("sha,sse4.1,ssse3")))

static int supported(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) && __get_cpuid(1, &a, &b, &c, &d) &&
           (c >> 19 & 1);
}

/* The instructions want the eight words as (A, B, E, F) and (C, D, G, H), the first one highest. */
WITH_SHA static inline void load(const uint32_t *state, __m128i *abef, __m128i *cdgh) {
    __m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const void *)state), 0xb1);
    __m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const void *)(state + 4)), 0x1b);
    *abef = _mm_alignr_epi8(low, high, 8);
    *cdgh = _mm_blend_epi16(high, low, 0xf0);
}

WITH_SHA static inline void store(uint32_t *state, __m128i abef, __m128i cdgh) {
    __m128i low = _mm_shuffle_epi32(abef, 0x1b), high = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((void *)state, _mm_blend_epi16(low, high, 0xf0));
    _mm_storeu_si128((void *)(state + 4), _mm_alignr_epi8(high, low, 8));
}

WITH_SHA static inline __attribute__((always_inline)) void
blocks(uint32_t *states[2], const unsigned char *data[2], Py_ssize_t count, const int lanes) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef[2], cdgh[2];
    for (int l = 0; l < lanes; l++) load(states[l], &abef[l], &cdgh[l]);
    for (; count; count--) {
        __m128i words[2][4], abef0[2], cdgh0[2];
        for (int l = 0; l < lanes; l++) abef0[l] = abef[l], cdgh0[l] = cdgh[l];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) { /* four rounds each */
#pragma GCC unroll 2
            for (int l = 0; l < lanes; l++) {
                __m128i *w = words[l];
                if (i < 4) {
                    w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(data[l] + 16 * i)), swap);
                } else {
                    __m128i part = _mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]);
                    part = _mm_add_epi32(part, _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4));
                    w[i % 4] = _mm_sha256msg2_epu32(part, w[(i + 3) % 4]);
                }
                __m128i next = _mm_add_epi32(w[i % 4], _mm_load_si128((const void *)(K + 4 * i)));
                cdgh[l] = _mm_sha256rnds2_epu32(cdgh[l], abef[l], next);
                next = _mm_shuffle_epi32(next, 0x0e);
                abef[l] = _mm_sha256rnds2_epu32(abef[l], cdgh[l], next);
            }
        }
        for (int l = 0; l < lanes; l++) {
            abef[l] = _mm_add_epi32(abef[l], abef0[l]);
            cdgh[l] = _mm_add_epi32(cdgh[l], cdgh0[l]);
            data[l] += 64;
        }
    }
    for (int l = 0; l < lanes; l++) store(states[l], abef[l], cdgh[l]);
}

WITH_SHA static void one(uint32_t *states[2], const unsigned char *data[2], Py_ssize_t count) {
    blocks(states, data, count, 1);
}

WITH_SHA static void two(uint32_t *states[2], const unsigned char *data[2], Py_ssize_t count) {
    blocks(states, data, count, 2);
}
#else
static int supported(void) { return 0; }
static void one(uint32_t *states[2], const unsigned char *data[2], Py_ssize_t count) {
    plain(states[0], data[0], count);
}
#define two one
#endif

static int native; /* PyInit has looked at the processor */

/* update(state, data[, state, data]): whole blocks; each state is eight words in memory order. */
static PyObject *hashed(PyObject *arguments, int fast) {
    Py_buffer state[2] = {{0}}, data[2] = {{0}};
    if (!PyArg_ParseTuple(arguments, "w*y*|w*y*", &state[0], &data[0], &state[1], &data[1]))
        return NULL;
    int lanes = state[1].obj ? 2 : 1, fine = 1;
    uint32_t *states[2] = {state[0].buf, state[1].buf};
    const unsigned char *from[2] = {data[0].buf, data[1].buf};
    for (int l = 0; l < lanes; l++)
        fine &= state[l].len == 32 && data[l].len % 64 == 0 && data[l].len == data[0].len;
    if (fine) {
        Py_BEGIN_ALLOW_THREADS
        if (fast)
            (lanes == 2 ? two : one)(states, from, data[0].len / 64);
        else
            for (int l = 0; l < lanes; l++) plain(states[l], from[l], data[l].len / 64);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "states of 32 bytes, equally many whole blocks of 64");
    }
    for (int l = 0; l < lanes; l++) PyBuffer_Release(&state[l]), PyBuffer_Release(&data[l]);
    if (!fine) return NULL;
    Py_RETURN_NONE;
}

static PyObject *update(PyObject *module, PyObject *arguments) {
    (void)module;
    return hashed(arguments, native);
}

static PyObject *update_plain(PyObject *module, PyObject *arguments) {
    (void)module;
    return hashed(arguments, 0);
}

static PyMethodDef methods[] = {
    {"update", update, METH_VARARGS, "See weightsurgery.checkpoint.hashing."},
    {"update_plain", update_plain, METH_VARARGS, "The same, on any processor."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_sha256", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__sha256(void) {
    PyObject *module = PyModule_Create(&definition);
    native = HERE && supported();
    if (module && PyModule_AddIntConstant(module, "native", native)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
