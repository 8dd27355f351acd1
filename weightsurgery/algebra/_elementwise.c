/* The inner loop of elementwise edits: one pass over the bytes, in float32, rounded once.
 *
 * elementwise.py documents what is computed and holds the same arithmetic in NumPy; the two agree
 * bit for bit, which is why contraction to fused multiply-add must stay off (see pyproject.toml).
 * Vectors of sixteen let the compiler use what the processor has; `target_clones` picks at run time.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINED static inline __attribute__((always_inline))

enum { WIDE = 16, TILE = 4096, MOST_TERMS = 64, SUMS = 7 };
enum kind { BF16, F16, F32, KINDS };
static const Py_ssize_t size_of[KINDS] = {2, 2, 4};

typedef uint16_t u16s __attribute__((vector_size(2 * WIDE)));
typedef int16_t i16s __attribute__((vector_size(2 * WIDE)));
typedef _Float16 halves __attribute__((vector_size(2 * WIDE)));
typedef uint32_t u32s __attribute__((vector_size(4 * WIDE)));
typedef int32_t i32s __attribute__((vector_size(4 * WIDE)));
typedef float floats __attribute__((vector_size(4 * WIDE)));

struct term {
    const char *data;
    enum kind kind;
    int relative;
    float factor;
};

/* What a pass has found: 0 |w|^2, 1 |d|^2, 2 |r|^2, 3 <d, r>, 4 <w, d>, 5 wanted, 6 moved. */
struct sums {
    double total[SUMS];
};

/* WIDE elements as float32. */
INLINED floats widen(const char *from, enum kind kind) {
    floats wide;
    if (kind == F32) {
        memcpy(&wide, from, sizeof wide);
    } else if (kind == BF16) {
        u16s bits;
        memcpy(&bits, from, sizeof bits);
        u32s shifted = __builtin_convertvector(bits, u32s) << 16;
        memcpy(&wide, &shifted, sizeof wide);
    } else {
        halves half;
        memcpy(&half, from, sizeof half);
        wide = __builtin_convertvector(half, floats);
    }
    return wide;
}

/* To nearest, ties to even, where `changes` is set, and the bits of `before` elsewhere: -0 + 0
 * would lose its sign. Returns what is stored, as float32; only finite values matter. */
INLINED floats narrow(char *to, const char *before, floats value, i32s changes, enum kind kind) {
    if (kind == F32) {
        i32s bits, old;
        memcpy(&bits, &value, sizeof bits);
        memcpy(&old, before, sizeof old);
        bits = (bits & changes) | (old & ~changes);
        memcpy(to, &bits, sizeof bits);
        return value;
    }
    floats stored;
    u16s low, old, mask = (u16s)__builtin_convertvector(changes, i16s);
    memcpy(&old, before, sizeof old);
    if (kind == BF16) {
        u32s bits;
        memcpy(&bits, &value, sizeof bits);
        bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        low = __builtin_convertvector(bits, u16s);
        bits <<= 16;
        memcpy(&stored, &bits, sizeof stored);
    } else {
        halves half = __builtin_convertvector(value, halves);
        memcpy(&low, &half, sizeof low);
        stored = __builtin_convertvector(half, floats);
    }
    low = (low & mask) | (old & ~mask);
    memcpy(to, &low, sizeof low);
    return stored;
}

/* Up to TILE elements, a multiple of WIDE. Each of the WIDE lanes sums at most TILE / WIDE float32
 * products before they are added up as float64, so the sums do not depend on the processor. */
INLINED void tile(const char *base, enum kind kind, const struct term *terms, int count,
                  int alike, char *out, float *change, Py_ssize_t length, struct sums *sums) {
    const Py_ssize_t width = size_of[kind];
    floats w2 = {0}, d2 = {0}, r2 = {0}, dr = {0}, wd = {0};
    i32s wanted = {0}, moved = {0};
    for (Py_ssize_t i = 0; i < length; i += WIDE) {
        floats w = widen(base + i * width, kind), d;
        if (alike) {
            d = terms[0].factor * (widen(terms[0].data + i * width, kind) - w);
        } else {
            for (int t = 0; t < count; t++) {
                floats given = widen(terms[t].data + i * size_of[terms[t].kind], terms[t].kind);
                if (terms[t].relative) given -= w;
                given *= terms[t].factor;
                d = t ? d + given : given;
            }
        }
        i32s changes = d != 0;
        floats r = narrow(out + i * width, base + i * width, w + d, changes, kind) - w;
        wanted -= changes;
        moved -= changes & (r != 0);
        w2 += w * w;
        d2 += d * d;
        r2 += r * r;
        dr += d * r;
        wd += w * d;
        if (change) memcpy(change + i, &d, sizeof d);
    }
    for (int j = 0; j < WIDE; j++) {
        sums->total[0] += w2[j], sums->total[1] += d2[j], sums->total[2] += r2[j];
        sums->total[3] += dr[j], sums->total[4] += wd[j];
        sums->total[5] += wanted[j], sums->total[6] += moved[j];
    }
}

INLINED void whole(const char *base, enum kind kind, struct term *terms, int count, int alike,
                   char *out, float *change, Py_ssize_t length, struct sums *sums) {
    const Py_ssize_t width = size_of[kind];
    char scratch[4 * TILE];
    Py_ssize_t at = 0;
    while (length - at >= WIDE) {
        Py_ssize_t now = length - at < TILE ? (length - at) / WIDE * WIDE : TILE;
        tile(base + at * width, kind, terms, count, alike, out ? out + at * width : scratch,
             change ? change + at : NULL, now, sums);
        for (int t = 0; t < count; t++) terms[t].data += now * size_of[terms[t].kind];
        at += now;
    }
    if (at < length) { /* the rest, padded with zeros, which change nothing */
        char padded[4 * WIDE] = {0}, others[MOST_TERMS][4 * WIDE];
        float changed[WIDE];
        Py_ssize_t rest = length - at;
        memcpy(padded, base + at * width, rest * width);
        for (int t = 0; t < count; t++) {
            memset(others[t], 0, sizeof others[t]);
            memcpy(others[t], terms[t].data, rest * size_of[terms[t].kind]);
            terms[t].data = others[t];
        }
        tile(padded, kind, terms, count, alike, scratch, changed, WIDE, sums);
        if (out) memcpy(out + at * width, scratch, rest * width);
        if (change) memcpy(change + at, changed, rest * sizeof *change);
    }
}

FOR_EACH_PROCESSOR static void combine_all(const char *base, enum kind kind, struct term *terms,
                                           int count, char *out, float *change,
                                           Py_ssize_t length, struct sums *sums) {
    /* The common cases are compiled each for itself: the difference to one checkpoint. */
    int alike = count == 1 && terms[0].relative && terms[0].kind == kind && !change;
    if (alike && kind == BF16)
        whole(base, BF16, terms, 1, 1, out, NULL, length, sums);
    else if (alike && kind == F16)
        whole(base, F16, terms, 1, 1, out, NULL, length, sums);
    else if (alike)
        whole(base, F32, terms, 1, 1, out, NULL, length, sums);
    else if (kind == BF16)
        whole(base, BF16, terms, count, 0, out, change, length, sums);
    else if (kind == F16)
        whole(base, F16, terms, count, 0, out, change, length, sums);
    else
        whole(base, F32, terms, count, 0, out, change, length, sums);
}

static PyObject *combine(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer base = {0}, out = {0}, change = {0}, data[MOST_TERMS];
    struct term terms[MOST_TERMS];
    struct sums sums = {{0}};
    int kind, held = 0;
    PyObject *list, *out_object, *change_object, *answer = NULL;
    if (!PyArg_ParseTuple(arguments, "y*iO!OO", &base, &kind, &PyTuple_Type, &list, &out_object,
                          &change_object))
        return NULL;
    Py_ssize_t count = PyTuple_Size(list);
    if (kind < 0 || kind >= KINDS || count < 1 || count > MOST_TERMS) {
        PyErr_SetString(PyExc_ValueError, "unknown dtype, or no or too many terms");
        goto done;
    }
    Py_ssize_t length = base.len / size_of[kind];
    if (out_object != Py_None &&
        (PyObject_GetBuffer(out_object, &out, PyBUF_WRITABLE) || out.len != base.len))
        goto shape;
    if (change_object != Py_None &&
        (PyObject_GetBuffer(change_object, &change, PyBUF_WRITABLE) || change.len != 4 * length))
        goto shape;
    for (; held < count; held++) {
        int of;
        if (!PyArg_ParseTuple(PyTuple_GetItem(list, held), "y*ifp", &data[held], &of,
                              &terms[held].factor, &terms[held].relative))
            goto done;
        if (of < 0 || of >= KINDS || data[held].len != length * size_of[of]) {
            held++;
            goto shape;
        }
        terms[held].kind = of;
        terms[held].data = data[held].buf;
    }
    Py_BEGIN_ALLOW_THREADS
    combine_all(base.buf, kind, terms, (int)count, out.buf, change.buf, length, &sums);
    Py_END_ALLOW_THREADS
    const double *found = sums.total;
    answer = Py_BuildValue("dddddnn", found[0], found[1], found[2], found[3], found[4],
                           (Py_ssize_t)found[5], (Py_ssize_t)found[6]);
    goto done;
shape:
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "buffers of different lengths");
done:
    for (int t = 0; t < held; t++) PyBuffer_Release(&data[t]);
    if (out.obj) PyBuffer_Release(&out);
    if (change.obj) PyBuffer_Release(&change);
    PyBuffer_Release(&base);
    return answer;
}

static PyMethodDef methods[] = {
    {"combine", combine, METH_VARARGS, "See weightsurgery.algebra.elementwise."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_elementwise", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__elementwise(void) { return PyModule_Create(&definition); }
