/* Fills batch buffers from the page cache with stores that bypass the CPU's caches.
 *
 * Why C in a Python project: a batch is far larger than the caches, so an ordinary copy, also the
 * kernel's, first fetches every line of the destination from memory only to overwrite it. Streaming
 * stores do not, and no Python package offers them. So the kernel copies into a small buffer that
 * stays in the second-level cache, and from there the bytes are streamed to their destination.
 * Against the better of bare preadv and bare row copies out of a memory map this reaches 0.85 to 1.0
 * on two cores, preadv straight into the batch 0.6 to 0.85. The module is optional: without it
 * msdata uses preadv.
 *
 * fill(table, first, stop): table is int64 (rows, 4), C-contiguous, each row one array
 * of one sample:
 *     file descriptor, offset, bytes, address of the destination
 * If the descriptor is SHARED_MEMORY, the "offset" is the address of bytes in mapped shared memory,
 * which are streamed to the destination at once.
 * It processes the rows [first, stop) without the GIL and returns the first row whose bytes are not
 * in memory, or not known to be: it never waits for a disk.
 *
 * copy_crc32c(source, targets), on CPUs that support it: streams a record from memory to its pieces
 * and returns its CRC32C, computed in the same pass: 20 us for 0.6 MB on one core; a copy followed by
 * a checksum took 45.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#include "streaming.h"

#define BOUNCE_BYTES (384 * 1024) /* fits the second-level cache; 64 KiB was 10 % slower */
#define DIRECT_BYTES (64 * 1024)  /* up to this size, a second copy costs more than it saves */
#define SHARED_MEMORY INT64_MIN /* no descriptor, not even a wrong one */
#define INTERFACE 4 /* what msdata/loader/read.py expects; a copy built from older source is not used */

typedef struct {
    int64_t fd, offset, nbytes, target;
} row_t;

static _Thread_local char bounce[BOUNCE_BYTES + LINE] __attribute__((aligned(4096)));

static ssize_t read_in_memory(const row_t *row, int64_t done, char *into, int64_t nbytes)
{
    struct iovec part = {into, (size_t)nbytes};
    return preadv2((int)row->fd, &part, 1, row->offset + done, RWF_NOWAIT);
}

static int read_row(const row_t *row)
{
    char *target = (char *)(uintptr_t)row->target;
    /* Python handles rows that no file can have: its call fails with a reason. */
    if (row->nbytes < 0)
        return 0;
    if (row->fd == SHARED_MEMORY) {
        stream_copy(target, (const char *)(uintptr_t)row->offset, (size_t)row->nbytes);
        return 1;
    }
    if (row->fd < 0 || row->fd > INT_MAX || row->offset < 0 ||
        row->offset > INT64_MAX - row->nbytes)
        return 0;
    if (row->nbytes <= DIRECT_BYTES)
        return read_in_memory(row, 0, target, row->nbytes) == row->nbytes;
    for (int64_t done = 0; done < row->nbytes;) {
        int64_t left = row->nbytes - done;
        /* Same offset within a line as the destination, so that both are aligned. */
        char *through = bounce + ((uintptr_t)(target + done) & (LINE - 1));
        ssize_t count =
            read_in_memory(row, done, through, left < BOUNCE_BYTES ? left : BOUNCE_BYTES);
        if (count <= 0)
            return 0;
        stream_copy(target + done, through, (size_t)count);
        done += count;
    }
    return 1;
}

static Py_ssize_t fill_rows(const row_t *rows, Py_ssize_t first, Py_ssize_t stop)
{
    Py_ssize_t i = first;
    while (i < stop && read_row(rows + i))
        i++;
    finish_streaming();
    return i;
}

static PyObject *fill(PyObject *module, PyObject *args)
{
    Py_buffer table;
    Py_ssize_t first, stop, done;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*nn:fill", &table, &first, &stop))
        return NULL;
    if ((uintptr_t)table.buf % _Alignof(row_t) != 0) {
        PyBuffer_Release(&table);
        PyErr_SetString(PyExc_ValueError, "table must be aligned to 8 bytes");
        return NULL;
    }
    if (first < 0 || stop < first || stop > table.len / (Py_ssize_t)sizeof(row_t)) {
        PyBuffer_Release(&table);
        PyErr_Format(PyExc_IndexError, "rows [%zd, %zd) are not in the table", first, stop);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    done = fill_rows((const row_t *)table.buf, first, stop);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&table);
    return PyLong_FromSsize_t(done);
}

#if defined(__x86_64__)
#define FOLD_BYTES (4 * LINE)
#define FOLDING "avx512f,avx512vl,avx512bw,vpclmulqdq,pclmul,sse4.2"

__attribute__((target("sse4.2"))) static uint32_t crc32c_bytes(uint32_t crc, const char *bytes,
                                                               size_t nbytes)
{
    uint64_t word, wide = crc;
    for (; nbytes >= 8; nbytes -= 8, bytes += 8) {
        memcpy(&word, bytes, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = (uint32_t)wide;
    for (; nbytes > 0; nbytes--, bytes++)
        crc = _mm_crc32_u8(crc, (uint8_t)*bytes);
    return crc;
}

/* Bytes are a polynomial over GF(2); four lines of it are carried over the next four by
 * multiplication with x^2048 modulo the checksum's polynomial; the last four lines have the remainder
 * of all. Source: Gopal et al., "Fast CRC Computation for Generic Polynomials
 * Using PCLMULQDQ Instruction", Intel 2009, section "Folding"; the constants are x^(2048+32) and
 * x^(2048-32) modulo 0x11EDC6F41, bits reversed, shifted by one. */
__attribute__((target(FOLDING))) static uint32_t stream_folding(uint32_t crc, char *target,
                                                                const char *source, size_t num_folds)
{
    const __m512i by = _mm512_set4_epi32(0, (int)0xb9e02b86, 0, (int)0xdcb17aa4);
    __m512i sum[4];
    char left[FOLD_BYTES] __attribute__((aligned(LINE)));
    for (int i = 0; i < 4; i++) {
        sum[i] = _mm512_loadu_si512(source + i * LINE);
        _mm512_stream_si512((__m512i *)(target + i * LINE), sum[i]);
    }
    sum[0] = _mm512_xor_si512(sum[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    while (--num_folds > 0) {
        source += FOLD_BYTES;
        target += FOLD_BYTES;
        for (int i = 0; i < 4; i++) {
            __m512i line = _mm512_loadu_si512(source + i * LINE);
            __m512i low = _mm512_clmulepi64_epi128(sum[i], by, 0x00);
            __m512i high = _mm512_clmulepi64_epi128(sum[i], by, 0x11);
            _mm512_stream_si512((__m512i *)(target + i * LINE), line);
            sum[i] = _mm512_ternarylogic_epi64(low, high, line, 0x96);
        }
    }
    for (int i = 0; i < 4; i++)
        _mm512_store_si512(left + i * LINE, sum[i]);
    return crc32c_bytes(0, left, FOLD_BYTES);
}

static uint32_t stream_crc32c(uint32_t crc, char *target, const char *source, size_t nbytes)
{
    if (nbytes == 0)
        return crc;
    size_t head = -(uintptr_t)target & (LINE - 1);
    if (head > nbytes)
        head = nbytes;
    memcpy(target, source, head);
    crc = crc32c_bytes(crc, source, head);
    size_t folds = (nbytes - head) / FOLD_BYTES;
    if (folds > 0)
        crc = stream_folding(crc, target + head, source + head, folds);
    size_t done = head + folds * FOLD_BYTES;
    memcpy(target + done, source + done, nbytes - done);
    return crc32c_bytes(crc, source + done, nbytes - done);
}

static int can_fold(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("vpclmulqdq") &&
           __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.2");
}
#else
static uint32_t stream_crc32c(uint32_t crc, char *target, const char *source, size_t nbytes)
{
    memcpy(target, source, nbytes);
    return crc;
}

static int can_fold(void)
{
    return 0;
}
#endif

#define MOST_PIECES 64

static PyObject *copy_crc32c(PyObject *module, PyObject *args)
{
    Py_buffer source, targets[MOST_PIECES];
    PyObject *given, *pieces, *found = NULL;
    Py_ssize_t num_targets = 0, nbytes = 0;
    uint32_t crc = UINT32_MAX;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*O:copy_crc32c", &source, &given))
        return NULL;
    pieces = PySequence_Fast(given, "targets must be a sequence");
    if (pieces == NULL)
        goto end;
    if (PySequence_Fast_GET_SIZE(pieces) > MOST_PIECES) {
        PyErr_Format(PyExc_ValueError, "targets must be at most %d pieces", MOST_PIECES);
        goto end;
    }
    for (; num_targets < PySequence_Fast_GET_SIZE(pieces); num_targets++) {
        PyObject *piece = PySequence_Fast_GET_ITEM(pieces, num_targets);
        if (PyObject_GetBuffer(piece, targets + num_targets, PyBUF_WRITABLE) < 0)
            goto end;
        nbytes += targets[num_targets].len;
    }
    if (nbytes != source.len) {
        PyErr_Format(PyExc_ValueError, "%zd bytes do not fill pieces of %zd", source.len, nbytes);
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    const char *from = source.buf;
    for (Py_ssize_t i = 0; i < num_targets; from += targets[i].len, i++)
        crc = stream_crc32c(crc, targets[i].buf, from, (size_t)targets[i].len);
    finish_streaming();
    Py_END_ALLOW_THREADS
    found = PyLong_FromUnsignedLong(~crc & UINT32_MAX);
end:
    while (num_targets > 0)
        PyBuffer_Release(targets + --num_targets);
    Py_XDECREF(pieces);
    PyBuffer_Release(&source);
    return found;
}

/* CPUs without the instructions do not get copy_crc32c. */
static PyMethodDef methods[] = {
    {"fill", fill, METH_VARARGS, "fill(table, first, stop) -> first row not done"},
    {"copy_crc32c", copy_crc32c, METH_VARARGS, "copy_crc32c(source, targets) -> CRC32C"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "msdata.core._stream_fill",
    .m_doc = "Fills batch buffers from the page cache with streaming stores.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__stream_fill(void)
{
    if (!can_fold())
        methods[1] = methods[2];
    PyObject *module = PyModule_Create(&definition);
    stream_lines = choose_stream_lines();
    if (module != NULL && PyModule_AddIntMacro(module, INTERFACE) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
