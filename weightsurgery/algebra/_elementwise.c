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
typedef uint32_t u32s __attribute__((vector_size(4 * WIDE)));
typedef int32_t i32s __attribute__((vector_size(4 * WIDE)));
typedef float floats __attribute__((vector_size(4 * WIDE)));

struct term {
    const char *data;
    enum kind kind;
    int relative;
    float factor;
};

/* What a pass has found: 0 |w|^2, 1 |d|^2, 2 |r|^2, 3 |r - d|^2, 4 <w, d>, 5 wanted, 6 moved. */
struct sums {
    double total[SUMS];
};

INLINED floats as_floats(u32s bits) {
    floats wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

INLINED u32s as_bits(floats wide) {
    u32s bits;
    memcpy(&bits, &wide, sizeof bits);
    return bits;
}

/* From the low half of each word, the upper being zero. A bfloat16 is the upper half of a float32;
 * float16: exponent and fraction moved into place, and the
 * exponent's bias corrected by a product, which is exact for subnormal numbers too. */
INLINED floats decoded(u32s half, enum kind kind) {
    if (kind == BF16) return as_floats(half << 16);
    u32s size = half & 0x7fff;
    u32s bits = as_bits(as_floats(size << 13) * 0x1p112f);
    bits |= (u32s)(size >= 0x7c00) & 0x7f800000; /* infinity and NaN stay such */
    return as_floats(bits | (half & 0x8000) << 16);
}

/* Into the low half of each word, to nearest, ties to even; the upper half is zero. */
INLINED u32s encoded(floats value, enum kind kind) {
    u32s bits = as_bits(value);
    if (kind == BF16) return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    u32s size = bits & 0x7fffffff;
    u32s normal = (size + 0xfff + ((size >> 13) & 1) - (112u << 23)) >> 13;
    /* Under 2^-14 a float16 counts in units of 2^-24, which are those of float32 next to 1/2. */
    u32s tiny = as_bits(as_floats(size) + 0.5f) - 0x3f000000;
    u32s small = (u32s)(size < (113u << 23)), large = (u32s)(size >= 0x477ff000);
    u32s half = (tiny & small) | (normal & ~small);
    half = (0x7c00 & large) | (half & ~large);
    return half | ((bits >> 16) & 0x8000);
}

/* WIDE elements as float32. */
INLINED floats widen(const char *from, enum kind kind) {
    floats wide;
    u16s bits;
    if (kind == F32) {
        memcpy(&wide, from, sizeof wide);
        return wide;
    }
    memcpy(&bits, from, sizeof bits);
    return decoded(__builtin_convertvector(bits, u32s), kind);
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
    u32s half = encoded(value, kind);
    u16s old, low = __builtin_convertvector(half, u16s);
    u16s mask = __builtin_convertvector((u32s)changes, u16s);
    memcpy(&old, before, sizeof old);
    low = (low & mask) | (old & ~mask);
    memcpy(to, &low, sizeof low);
    return decoded(half, kind);
}

/* How a pass works: any dtypes; one difference in the weights' own dtype;
 * 16-bit numbers of one kind, several terms or one. */
enum way { ANY, ALIKE, PAIRS, PAIR };

/* Adds WIDE weights, their change and what is stored to running sums. */
struct lanes {
    floats w2, d2, r2, e2, wd;
    i32s wanted, moved;
};

INLINED void tally(struct lanes *l, floats w, floats d, i32s changes, floats stored) {
    floats r = stored - w, e = r - d;
    l->wanted -= changes;
    l->moved -= changes & (r != 0);
    l->w2 += w * w;
    l->d2 += d * d;
    l->r2 += r * r;
    l->e2 += e * e;
    l->wd += w * d;
}

INLINED void collect(struct sums *sums, const struct lanes *l) {
    for (int j = 0; j < WIDE; j++) {
        sums->total[0] += l->w2[j], sums->total[1] += l->d2[j], sums->total[2] += l->r2[j];
        sums->total[3] += l->e2[j], sums->total[4] += l->wd[j];
        sums->total[5] += l->wanted[j], sums->total[6] += l->moved[j];
    }
}

/* Up to TILE elements, a multiple of WIDE. Each of the WIDE lanes sums at most TILE / WIDE float32
 * products before they are added up as float64, so the sums do not depend on the processor. */
INLINED void tile(const char *base, enum kind kind, const struct term *terms, int count,
                  int alike, char *out, float *change, Py_ssize_t length, struct sums *sums) {
    const Py_ssize_t width = size_of[kind];
    struct lanes lanes = {0};
    for (Py_ssize_t i = 0; i < length; i += WIDE) {
        floats w = widen(base + i * width, kind), d = {0};
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
        tally(&lanes, w, d, changes, narrow(out + i * width, base + i * width, w + d, changes, kind));
        if (change) memcpy(change + i, &d, sizeof d);
    }
    collect(sums, &lanes);
}

/* Up to TILE elements, a multiple of 2 * WIDE; weights and terms of one 16-bit kind, two in each
 * 32-bit word: widening 16-bit lanes costs more than the arithmetic. */
INLINED void pairs(const char *base, enum kind kind, const struct term *terms, int count,
                   char *out, float *change, Py_ssize_t length, struct sums *sums) {
    struct lanes lanes = {0};
    for (Py_ssize_t i = 0; i < length; i += 2 * WIDE) {
        u32s words;
        memcpy(&words, base + 2 * i, sizeof words);
        floats wl = decoded(words & 0xffff, kind), wu = decoded(words >> 16, kind);
        floats dl = {0}, du = {0};
        for (int t = 0; t < count; t++) {
            u32s given;
            memcpy(&given, terms[t].data + 2 * i, sizeof given);
            floats l = decoded(given & 0xffff, kind), u = decoded(given >> 16, kind);
            if (terms[t].relative) l -= wl, u -= wu;
            l *= terms[t].factor, u *= terms[t].factor;
            dl = t ? dl + l : l, du = t ? du + u : u;
        }
        i32s cl = dl != 0, cu = du != 0;
        u32s low = encoded(wl + dl, kind), up = encoded(wu + du, kind);
        u32s mask = ((u32s)cl & 0xffff) | ((u32s)cu & 0xffff0000u);
        u32s result = ((low | up << 16) & mask) | (words & ~mask);
        memcpy(out + 2 * i, &result, sizeof result);
        tally(&lanes, wl, dl, cl, decoded(low, kind));
        tally(&lanes, wu, du, cu, decoded(up, kind));
        if (change)
            for (int j = 0; j < WIDE; j++) change[i + 2 * j] = dl[j], change[i + 2 * j + 1] = du[j];
    }
    collect(sums, &lanes);
}

INLINED void whole(const char *base, enum kind kind, struct term *terms, int count, enum way way,
                   char *out, float *change, Py_ssize_t length, struct sums *sums) {
    const Py_ssize_t width = size_of[kind], step = way >= PAIRS ? 2 * WIDE : WIDE;
    char scratch[4 * TILE];
    Py_ssize_t at = 0;
    while (length - at >= step) {
        Py_ssize_t now = length - at < TILE ? (length - at) / step * step : TILE;
        char *to = out ? out + at * width : scratch;
        float *changed = change ? change + at : NULL;
        if (way >= PAIRS)
            pairs(base + at * width, kind, terms, way == PAIR ? 1 : count, to, changed, now, sums);
        else
            tile(base + at * width, kind, terms, count, way == ALIKE, to, changed, now, sums);
        for (int t = 0; t < count; t++) terms[t].data += now * size_of[terms[t].kind];
        at += now;
    }
    while (at < length) { /* the rest, padded with zeros, which change nothing */
        char padded[4 * WIDE] = {0}, others[MOST_TERMS][4 * WIDE];
        struct term rest[MOST_TERMS];
        float changed[WIDE];
        Py_ssize_t now = length - at < WIDE ? length - at : WIDE;
        memcpy(padded, base + at * width, now * width);
        for (int t = 0; t < count; t++) {
            rest[t] = terms[t];
            memset(others[t], 0, sizeof others[t]);
            memcpy(others[t], terms[t].data, now * size_of[terms[t].kind]);
            rest[t].data = others[t];
            terms[t].data += now * size_of[terms[t].kind];
        }
        tile(padded, kind, rest, count, 0, scratch, changed, WIDE, sums);
        if (out) memcpy(out + at * width, scratch, now * width);
        if (change) memcpy(change + at, changed, now * sizeof *change);
        at += now;
    }
}

FOR_EACH_PROCESSOR static void combine_all(const char *base, enum kind kind, struct term *terms,
                                           int count, char *out, float *change,
                                           Py_ssize_t length, struct sums *sums) {
    /* The common cases are compiled each for itself. */
    int same = 1;
    for (int t = 0; t < count; t++) same &= terms[t].kind == kind;
    int alike = same && count == 1 && terms[0].relative && !change;
    if (same && kind == BF16 && count == 1)
        whole(base, BF16, terms, count, PAIR, out, change, length, sums);
    else if (same && kind == BF16)
        whole(base, BF16, terms, count, PAIRS, out, change, length, sums);
    else if (kind == BF16)
        whole(base, BF16, terms, count, ANY, out, change, length, sums);
    else if (same && kind == F16 && count == 1)
        whole(base, F16, terms, count, PAIR, out, change, length, sums);
    else if (same && kind == F16)
        whole(base, F16, terms, count, PAIRS, out, change, length, sums);
    else if (kind == F16)
        whole(base, F16, terms, count, ANY, out, change, length, sums);
    else if (alike)
        whole(base, F32, terms, 1, ALIKE, out, NULL, length, sums);
    else
        whole(base, F32, terms, count, ANY, out, change, length, sums);
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
