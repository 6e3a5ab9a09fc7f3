/* The compiled twins of the functions that `holdfast.compiled.compiled` decorates.

   Each function does what the Python function of its name does, gives equal answers and raises the same
   kinds of errors; read that one for what it is for. `tests/test_compiled.py` compares them.
   Nothing is kept between calls, and nothing is trusted that Python code hands in: a wrong type is an
   exception here too.

   Reference counts: functions named `new_...` give a new reference; arrays of items handed to
   `new_record` are taken over by it, whatever comes of it, and a NULL among them is an error that is
   already set. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum op_kind { OP_WRITE = 1, OP_DISCARD, OP_ZERO, OP_FLUSH, OP_SYNC_WRITE, OP_SYNC_ZERO };
enum request_kind { REQUEST_READ = 1, REQUEST_WRITE, REQUEST_FLUSH };

#define OP_ENTRY_BYTES 17

/* NBD, as in node/nbd/protocol.py. */
#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define NBD_HEADER_BYTES 28
#define NBD_REPLY_BYTES 16
enum nbd_command { NBD_READ, NBD_WRITE };
enum nbd_stop { STOP_MORE, STOP_FULL, STOP_RARE };

#define RUN_MAX 64 /* Operations written at once without Python's lock. */

typedef struct {
    PyTypeObject *op;
    PyTypeObject *request;
    PyTypeObject *reply;
    PyObject *nothing; /* b"" */
    uint64_t region_bytes;
    uint64_t chunk_bytes;
    uint64_t request_bytes_max;
    uint64_t misaligned;
} State;

/* --- helpers --- */

static uint16_t
read_16(const char *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return be16toh(value);
}

static uint32_t
read_32(const char *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return be32toh(value);
}

static uint64_t
read_64(const char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return be64toh(value);
}

static void
write_32(char *at, uint32_t value)
{
    value = htobe32(value);
    memcpy(at, &value, sizeof value);
}

static void
write_64(char *at, uint64_t value)
{
    value = htobe64(value);
    memcpy(at, &value, sizeof value);
}

static bool
has_arguments(const char *name, Py_ssize_t count, Py_ssize_t wanted)
{
    if (count == wanted)
        return true;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", name, wanted, count);
    return false;
}

/* A tuple, or an instance of a named tuple, of `items`, which it takes over. */
static PyObject *
new_record(PyTypeObject *type, Py_ssize_t size, PyObject *const *items)
{
    bool whole = true;
    for (Py_ssize_t i = 0; i < size; i++)
        whole &= items[i] != NULL;
    PyObject *record = NULL;
    if (whole)
        record = type == &PyTuple_Type ? PyTuple_New(size) : type->tp_alloc(type, size);
    for (Py_ssize_t i = 0; i < size; i++) {
        if (record != NULL)
            PyTuple_SET_ITEM(record, i, items[i]);
        else
            Py_XDECREF(items[i]);
    }
    return record;
}

/* Appends what it takes over; false with an error set. */
static bool
append(PyObject *list, PyObject *item)
{
    if (item == NULL)
        return false;
    int failed = PyList_Append(list, item);
    Py_DECREF(item);
    return failed == 0;
}

static bool
read_u64(PyObject *number, uint64_t *value)
{
    *value = PyLong_AsUnsignedLongLong(number);
    if (*value != (uint64_t)-1 || !PyErr_Occurred())
        return true;
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_ValueError, "%R does not fit 64 bits without a sign", number);
    return false;
}

/* A record's items, borrowed; NULL with an error set. */
static PyObject **
items_of(PyObject *record, Py_ssize_t size, const char *what)
{
    if (PyTuple_Check(record) && PyTuple_GET_SIZE(record) == size)
        return ((PyTupleObject *)record)->ob_item;
    PyErr_Format(PyExc_ValueError, "%s is a tuple of %zd items, not %R", what, size, Py_TYPE(record));
    return NULL;
}

typedef struct {
    uint64_t kind, offset, length;
    PyObject *const *items;
} Op;

static bool
read_op(PyObject *record, Op *op)
{
    op->items = items_of(record, 4, "an operation");
    return op->items != NULL && read_u64(op->items[0], &op->kind) &&
           read_u64(op->items[1], &op->offset) && read_u64(op->items[2], &op->length);
}

static bool
is_bytewise(PyObject *object, const char *what)
{
    if (PyMemoryView_Check(object)) {
        Py_buffer *buffer = PyMemoryView_GET_BUFFER(object);
        if (buffer->buf != NULL && buffer->ndim == 1 && buffer->itemsize == 1 &&
            PyBuffer_IsContiguous(buffer, 'C'))
            return true;
    }
    PyErr_Format(PyExc_TypeError, "%s is a memoryview of bytes", what);
    return false;
}

/* --- op_table.py --- */

static bool
carries(uint64_t kind)
{
    return kind == OP_WRITE || kind == OP_SYNC_WRITE;
}

static PyObject *
pack_ops(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (!has_arguments("pack_ops", count, 1))
        return NULL;
    PyObject *ops = PySequence_Fast(arguments[0], "operations are a sequence");
    if (ops == NULL)
        return NULL;
    Py_ssize_t length = PySequence_Fast_GET_SIZE(ops);
    PyObject *table = PyByteArray_FromStringAndSize(NULL, length * OP_ENTRY_BYTES);
    PyObject *pieces = PyList_New(0);
    uint64_t size = 0;
    if (table == NULL || pieces == NULL)
        goto failed;
    for (Py_ssize_t i = 0; i < length; i++) {
        Op op;
        if (!read_op(PySequence_Fast_GET_ITEM(ops, i), &op))
            goto failed;
        Py_ssize_t held = PyObject_Size(op.items[3]);
        if (held < 0)
            goto failed;
        if (carries(op.kind)) {
            if ((uint64_t)held != op.length) {
                PyErr_Format(PyExc_ValueError, "a write of %llu bytes holds %zd",
                             (unsigned long long)op.length, held);
                goto failed;
            }
            if (PyList_Append(pieces, op.items[3]) < 0)
                goto failed;
            size += op.length;
        }
        else if (held || op.kind < OP_WRITE || op.kind > OP_SYNC_ZERO) {
            PyErr_Format(PyExc_ValueError, "operation kind %llu with %zd bytes",
                         (unsigned long long)op.kind, held);
            goto failed;
        }
        char *at = PyByteArray_AS_STRING(table) + i * OP_ENTRY_BYTES;
        at[0] = (char)op.kind;
        write_64(at + 1, op.offset);
        write_64(at + 9, op.length);
    }
    Py_DECREF(ops);
    return Py_BuildValue("NNK", table, pieces, (unsigned long long)size);

failed:
    Py_DECREF(ops);
    Py_XDECREF(table);
    Py_XDECREF(pieces);
    return NULL;
}

static PyObject *
unpack_ops(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    State *state = PyModule_GetState(module);
    if (!has_arguments("unpack_ops", count, 2) || !is_bytewise(arguments[0], "the table") ||
        !is_bytewise(arguments[1], "the data"))
        return NULL;
    Py_buffer *table = PyMemoryView_GET_BUFFER(arguments[0]);
    PyObject *data = arguments[1];
    uint64_t size = (uint64_t)PyMemoryView_GET_BUFFER(data)->len;
    if (table->len % OP_ENTRY_BYTES)
        return PyErr_Format(PyExc_ValueError, "a table of %zd bytes", table->len);
    Py_ssize_t length = table->len / OP_ENTRY_BYTES;
    const char *entry = table->buf;
    PyObject *ops = PyList_New(length);
    if (ops == NULL)
        return NULL;
    uint64_t at = 0;
    for (Py_ssize_t i = 0; i < length; i++, entry += OP_ENTRY_BYTES) {
        unsigned kind = (unsigned char)entry[0];
        uint64_t bytes = read_64(entry + 9);
        PyObject *payload;
        if (carries(kind)) {
            if (bytes > size - at) {
                PyErr_Format(PyExc_ValueError, "operations of more bytes than the %llu behind them",
                             (unsigned long long)size);
                goto failed;
            }
            payload = PySequence_GetSlice(data, (Py_ssize_t)at, (Py_ssize_t)(at + bytes));
            at += bytes;
        }
        else if (kind < OP_WRITE || kind > OP_SYNC_ZERO) {
            PyErr_Format(PyExc_ValueError, "operation kind %u", kind);
            goto failed;
        }
        else {
            payload = Py_NewRef(state->nothing);
        }
        PyObject *items[] = {PyLong_FromUnsignedLong(kind),
                             PyLong_FromUnsignedLongLong(read_64(entry + 1)),
                             PyLong_FromUnsignedLongLong(bytes), payload};
        PyObject *op = new_record(state->op, 4, items);
        if (op == NULL)
            goto failed;
        PyList_SET_ITEM(ops, i, op);
    }
    if (at != size) {
        PyErr_Format(PyExc_ValueError, "operations of %llu bytes stand over %llu",
                     (unsigned long long)at, (unsigned long long)size);
        goto failed;
    }
    return ops;

failed:
    Py_DECREF(ops);
    return NULL;
}

/* --- sync/disk.py --- */

/* Notes one operation in `touched` for each of its regions; -1 with an error set, 1 if one of them
   is not in `marked`. */
static int
touch(const Op *op, PyObject *value, PyObject *marked, PyObject *touched, uint64_t region_bytes)
{
    int unmarked = 0;
    uint64_t last = (op->offset + op->length - 1) / region_bytes;
    for (uint64_t number = op->offset / region_bytes; number <= last; number++) {
        PyObject *region = PyLong_FromUnsignedLongLong(number);
        if (region == NULL)
            return -1;
        int failed = PyDict_SetItem(touched, region, value);
        int is_marked = failed ? -1 : PySet_Contains(marked, region);
        Py_DECREF(region);
        if (is_marked < 0)
            return -1;
        unmarked |= !is_marked;
    }
    return unmarked;
}

static PyObject *
note_ops(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    State *state = PyModule_GetState(module);
    uint64_t sequence;
    if (!has_arguments("note_ops", count, 5) || !read_u64(arguments[1], &sequence))
        return NULL;
    PyObject *now = arguments[2], *marked = arguments[3], *touched = arguments[4];
    if (!PyAnySet_Check(marked) || !PyDict_Check(touched)) {
        PyErr_SetString(PyExc_TypeError, "note_ops takes a set and a dictionary");
        return NULL;
    }
    PyObject *ops = PySequence_Fast(arguments[0], "operations are a sequence");
    if (ops == NULL)
        return NULL;
    PyObject *window = PyList_New(0), *flushes = PyList_New(0);
    bool unmarked = false;
    if (window == NULL || flushes == NULL)
        goto failed;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(ops); i++, sequence++) {
        Op op;
        if (!read_op(PySequence_Fast_GET_ITEM(ops, i), &op))
            goto failed;
        PyObject *place = PyLong_FromUnsignedLongLong(sequence);
        if (place == NULL)
            goto failed;
        if (op.kind == OP_FLUSH) {
            if (!append(flushes, place))
                goto failed;
            continue;
        }
        if (!op.length) {
            Py_DECREF(place);
            continue;
        }
        PyObject *touching[] = {Py_NewRef(place), Py_NewRef(now)};
        PyObject *items[] = {place, Py_NewRef(op.items[1]), Py_NewRef(op.items[2])};
        PyObject *value = new_record(&PyTuple_Type, 2, touching);
        bool noted = append(window, new_record(&PyTuple_Type, 3, items)) && value != NULL;
        int state_of_marks =
            noted ? touch(&op, value, marked, touched, state->region_bytes) : -1;
        Py_XDECREF(value);
        if (state_of_marks < 0)
            goto failed;
        unmarked |= state_of_marks;
    }
    Py_DECREF(ops);
    return Py_BuildValue("NNO", window, flushes, unmarked ? Py_True : Py_False);

failed:
    Py_DECREF(ops);
    Py_XDECREF(window);
    Py_XDECREF(flushes);
    return NULL;
}

/* --- sync/plain_writes.py --- */

static PyObject *
plain_writes(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    State *state = PyModule_GetState(module);
    uint64_t volume_bytes;
    if (!has_arguments("plain_writes", count, 2) || !read_u64(arguments[1], &volume_bytes))
        return NULL;
    PyObject *requests = PySequence_Fast(arguments[0], "requests are a sequence");
    if (requests == NULL)
        return NULL;
    PyObject *ops = PyList_New(0), *replies = PyList_New(0);
    uint64_t size = 0;
    if (ops == NULL || replies == NULL)
        goto failed;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(requests); i++) {
        PyObject **request = items_of(PySequence_Fast_GET_ITEM(requests, i), 6, "a request");
        uint64_t kind, flags, offset, length;
        if (request == NULL || !read_u64(request[1], &kind) || !read_u64(request[2], &flags) ||
            !read_u64(request[3], &offset) || !read_u64(request[4], &length))
            goto failed;
        if (kind != REQUEST_WRITE || flags || ((offset | length) & state->misaligned) || !length ||
            length > state->request_bytes_max || length > volume_bytes ||
            offset > volume_bytes - length)
            break;
        PyObject *op[] = {PyLong_FromLong(OP_WRITE), Py_NewRef(request[3]), Py_NewRef(request[4]),
                          Py_NewRef(request[5])};
        PyObject *reply[] = {Py_NewRef(request[0]), PyLong_FromLong(0), Py_NewRef(state->nothing)};
        bool taken = append(ops, new_record(state->op, 4, op));
        if (!append(replies, new_record(state->reply, 3, reply)) || !taken)
            goto failed;
        size += length;
    }
    Py_DECREF(requests);
    return Py_BuildValue("NNK", ops, replies, (unsigned long long)size);

failed:
    Py_DECREF(requests);
    Py_XDECREF(ops);
    Py_XDECREF(replies);
    return NULL;
}

/* --- sync/consumer.py --- */

static PyObject *
keep_requests(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (!has_arguments("keep_requests", count, 2))
        return NULL;
    PyObject *unanswered = arguments[0];
    if (!PyDict_Check(unanswered)) {
        PyErr_SetString(PyExc_TypeError, "keep_requests takes a dictionary");
        return NULL;
    }
    PyObject *requests = PySequence_Fast(arguments[1], "requests are a sequence");
    if (requests == NULL)
        return NULL;
    Py_ssize_t kept = 0;
    for (; kept < PySequence_Fast_GET_SIZE(requests); kept++) {
        PyObject *record = PySequence_Fast_GET_ITEM(requests, kept);
        PyObject **request = items_of(record, 6, "a request");
        uint64_t kind;
        if (request == NULL || !read_u64(request[1], &kind))
            goto failed;
        if (kind == REQUEST_FLUSH)
            break;
        if (PyDict_SetItem(unanswered, request[0], record) < 0)
            goto failed;
    }
    Py_DECREF(requests);
    return PyLong_FromSsize_t(kept);

failed:
    Py_DECREF(requests);
    return NULL;
}

static PyObject *
settle_writes(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (!has_arguments("settle_writes", count, 2))
        return NULL;
    PyObject *unanswered = arguments[0];
    if (!PyDict_Check(unanswered)) {
        PyErr_SetString(PyExc_TypeError, "settle_writes takes a dictionary");
        return NULL;
    }
    PyObject *replies = PySequence_Fast(arguments[1], "replies are a sequence");
    if (replies == NULL)
        return NULL;
    Py_ssize_t done = 0;
    for (; done < PySequence_Fast_GET_SIZE(replies); done++) {
        PyObject **reply = items_of(PySequence_Fast_GET_ITEM(replies, done), 3, "a reply");
        if (reply == NULL)
            goto failed;
        PyObject *found = PyDict_GetItemWithError(unanswered, reply[0]);
        if (found == NULL) {
            if (PyErr_Occurred())
                goto failed;
            break;
        }
        PyObject **request = items_of(found, 6, "a request");
        uint64_t kind;
        if (request == NULL || !read_u64(request[1], &kind))
            goto failed;
        int has_flags = PyObject_IsTrue(request[2]), has_failed = PyObject_IsTrue(reply[1]);
        if (has_flags < 0 || has_failed < 0)
            goto failed;
        if (kind != REQUEST_WRITE || has_flags || has_failed)
            break;
        if (PyDict_DelItem(unanswered, reply[0]) < 0)
            goto failed;
    }
    Py_DECREF(replies);
    return PyLong_FromSsize_t(done);

failed:
    Py_DECREF(replies);
    return NULL;
}

/* --- local/copy/hashes.py --- */

static PyObject *
note_chunks(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    State *state = PyModule_GetState(module);
    if (!has_arguments("note_chunks", count, 2))
        return NULL;
    PyObject *chunks = arguments[1];
    if (!PySet_Check(chunks)) {
        PyErr_SetString(PyExc_TypeError, "note_chunks takes a set");
        return NULL;
    }
    PyObject *ops = PySequence_Fast(arguments[0], "operations are a sequence");
    if (ops == NULL)
        return NULL;
    PyObject *runs = PyList_New(0);
    if (runs == NULL)
        goto failed;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(ops); i++) {
        Op op;
        if (!read_op(PySequence_Fast_GET_ITEM(ops, i), &op))
            goto failed;
        if (op.length == 0)
            continue;
        uint64_t first = op.offset / state->chunk_bytes;
        uint64_t last = (op.offset + op.length - 1) / state->chunk_bytes;
        if (first != last) {
            PyObject *run[] = {PyLong_FromUnsignedLongLong(first),
                               PyLong_FromUnsignedLongLong(last - first + 1)};
            if (!append(runs, new_record(&PyTuple_Type, 2, run)))
                goto failed;
            continue;
        }
        PyObject *chunk = PyLong_FromUnsignedLongLong(first);
        int failed = chunk == NULL ? -1 : PySet_Add(chunks, chunk);
        Py_XDECREF(chunk);
        if (failed)
            goto failed;
    }
    Py_DECREF(ops);
    return runs;

failed:
    Py_DECREF(ops);
    Py_XDECREF(runs);
    return NULL;
}

/* --- local/copy/data.py --- */

/* Writes `parts` one behind the other to `offset` and on, without Python's lock; 0 or an errno. A short
   write goes on where it ended, and is told then what is the matter. */
static int
write_parts(int fd, struct iovec *parts, int count, off_t offset)
{
    ssize_t written = 0;
    for (;;) {
        for (; count > 0 && (size_t)written >= parts->iov_len; count--, parts++)
            written -= (ssize_t)parts->iov_len;
        if (count == 0)
            return 0;
        parts->iov_base = (char *)parts->iov_base + written;
        parts->iov_len -= (size_t)written;
        do {
            written = count == 1 ? pwrite(fd, parts->iov_base, parts->iov_len, offset)
                                 : pwritev(fd, parts, count, offset);
        } while (written < 0 && errno == EINTR);
        if (written <= 0)
            return written < 0 ? errno : EIO;
        offset += written;
    }
}

static PyObject *
write_ops(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (!has_arguments("write_ops", count, 3))
        return NULL;
    int fd = PyObject_AsFileDescriptor(arguments[0]);
    Py_ssize_t at = PyLong_AsSsize_t(arguments[2]);
    if (fd < 0 || (at == -1 && PyErr_Occurred()))
        return NULL;
    PyObject *ops = PySequence_Fast(arguments[1], "operations are a sequence");
    if (ops == NULL)
        return NULL;
    Py_buffer held[RUN_MAX];
    struct iovec parts[RUN_MAX];
    off_t offsets[RUN_MAX];
    bool goes_on = at >= 0;
    while (goes_on) {
        int filled = 0;
        while (filled < RUN_MAX && (goes_on = at < PySequence_Fast_GET_SIZE(ops))) {
            Op op;
            if (!read_op(PySequence_Fast_GET_ITEM(ops, at), &op))
                break;
            if (!(goes_on = carries(op.kind)))
                break;
            if (PyObject_GetBuffer(op.items[3], &held[filled], PyBUF_SIMPLE) < 0)
                break;
            parts[filled].iov_base = held[filled].buf;
            parts[filled].iov_len = (size_t)held[filled].len;
            offsets[filled++] = (off_t)op.offset;
            at++;
        }
        int error = 0;
        if (!PyErr_Occurred()) {
            Py_BEGIN_ALLOW_THREADS
            for (int first = 0, next; first < filled && !error; first = next) {
                off_t end = offsets[first] + (off_t)parts[first].iov_len;
                for (next = first + 1; next < filled && offsets[next] == end; next++)
                    end += (off_t)parts[next].iov_len;
                error = write_parts(fd, parts + first, next - first, offsets[first]);
            }
            Py_END_ALLOW_THREADS
        }
        while (filled > 0)
            PyBuffer_Release(&held[--filled]);
        if (error) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
        }
        if (PyErr_Occurred()) {
            Py_DECREF(ops);
            return NULL;
        }
    }
    Py_DECREF(ops);
    return PyLong_FromSsize_t(at);
}

/* --- node/nbd/plain.py --- */

typedef struct {
    uint64_t next_id, inflight_bytes, written_bytes;
    Py_ssize_t position, wanted;
    enum nbd_stop stop;
} Taken;

static bool
take_one(State *state, PyObject *view, Taken *taken, unsigned command, const char *header,
         PyObject *requests, PyObject *pending)
{
    uint64_t length = read_32(header + 24);
    Py_ssize_t begin = taken->position + NBD_HEADER_BYTES;
    bool is_write = command == NBD_WRITE;
    PyObject *id = PyLong_FromUnsignedLongLong(taken->next_id);
    PyObject *offset = PyLong_FromUnsignedLongLong(read_64(header + 16));
    PyObject *size = PyLong_FromUnsignedLongLong(length);
    PyObject *data = is_write ? PySequence_GetSlice(view, begin, begin + (Py_ssize_t)length)
                              : Py_NewRef(state->nothing);
    PyObject *request[] = {Py_XNewRef(id),
                           PyLong_FromLong(is_write ? REQUEST_WRITE : REQUEST_READ),
                           PyLong_FromUnsignedLong(is_write ? read_16(header + 4) : 0),
                           Py_XNewRef(offset), Py_XNewRef(size), data};
    PyObject *entry[] = {PyLong_FromUnsignedLongLong(read_64(header + 8)),
                         PyLong_FromUnsignedLong(command), offset, size};
    PyObject *whole = new_record(&PyTuple_Type, 4, entry);
    bool done = append(requests, new_record(state->request, 6, request)) && whole != NULL &&
                PyDict_SetItem(pending, id, whole) == 0;
    Py_XDECREF(whole);
    Py_XDECREF(id);
    if (done) {
        taken->next_id++;
        taken->inflight_bytes += length;
        taken->position = begin;
        if (is_write) {
            taken->position += (Py_ssize_t)length;
            taken->written_bytes += length;
        }
    }
    return done;
}

static PyObject *
take_requests(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    State *state = PyModule_GetState(module);
    if (!has_arguments("take_requests", count, 11) || !is_bytewise(arguments[0], "the view"))
        return NULL;
    PyObject *view = arguments[0], *requests = arguments[9], *pending = arguments[10];
    Taken taken = {.wanted = NBD_HEADER_BYTES, .stop = STOP_MORE};
    uint64_t inflight_max, volume_bytes;
    taken.position = PyLong_AsSsize_t(arguments[1]);
    Py_ssize_t end = PyLong_AsSsize_t(arguments[2]);
    Py_ssize_t room = PyLong_AsSsize_t(arguments[4]);
    int is_writable = PyObject_IsTrue(arguments[8]);
    if (PyErr_Occurred() || !read_u64(arguments[3], &taken.next_id) ||
        !read_u64(arguments[5], &taken.inflight_bytes) || !read_u64(arguments[6], &inflight_max) ||
        !read_u64(arguments[7], &volume_bytes))
        return NULL;
    if (!PyList_Check(requests) || !PyDict_Check(pending) || taken.position < 0 ||
        end > PyMemoryView_GET_BUFFER(view)->len) {
        PyErr_SetString(PyExc_TypeError, "take_requests takes a range of the view, a list, a dictionary");
        return NULL;
    }
    const char *bytes = PyMemoryView_GET_BUFFER(view)->buf;
    for (; end - taken.position >= NBD_HEADER_BYTES; room--) {
        if (room <= 0 || taken.inflight_bytes >= inflight_max) {
            taken.stop = STOP_FULL;
            break;
        }
        const char *header = bytes + taken.position;
        unsigned command = read_16(header + 6);
        uint64_t offset = read_64(header + 16), length = read_32(header + 24);
        bool is_plain = read_32(header) == NBD_REQUEST_MAGIC && command <= NBD_WRITE &&
                        read_16(header + 4) <= 1 && length > 0 &&
                        length <= state->request_bytes_max &&
                        !((offset | length) & state->misaligned) && length <= volume_bytes &&
                        offset <= volume_bytes - length && (is_writable || command == NBD_READ);
        if (!is_plain) {
            taken.stop = STOP_RARE;
            break;
        }
        Py_ssize_t whole = NBD_HEADER_BYTES + (Py_ssize_t)length;
        if (command == NBD_WRITE && whole > end - taken.position) {
            taken.wanted = whole;
            break;
        }
        if (!take_one(state, view, &taken, command, header, requests, pending))
            return NULL;
    }
    return Py_BuildValue("inKKKn", (int)taken.stop, taken.wanted,
                         (unsigned long long)taken.next_id, (unsigned long long)taken.inflight_bytes,
                         (unsigned long long)taken.written_bytes, taken.position);
}

static PyObject *
answer_writes(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (!has_arguments("answer_writes", count, 2))
        return NULL;
    PyObject *pending = arguments[1];
    if (!PyDict_Check(pending)) {
        PyErr_SetString(PyExc_TypeError, "answer_writes takes a dictionary");
        return NULL;
    }
    PyObject *replies = PySequence_Fast(arguments[0], "replies are a sequence");
    if (replies == NULL)
        return NULL;
    Py_ssize_t length = PySequence_Fast_GET_SIZE(replies), done = 0;
    PyObject *answers = PyBytes_FromStringAndSize(NULL, length * NBD_REPLY_BYTES);
    uint64_t inflight = 0;
    if (answers == NULL)
        goto failed;
    for (; done < length; done++) {
        PyObject **reply = items_of(PySequence_Fast_GET_ITEM(replies, done), 3, "a reply");
        if (reply == NULL)
            goto failed;
        PyObject *found = PyDict_GetItemWithError(pending, reply[0]);
        if (found == NULL) {
            if (PyErr_Occurred())
                goto failed;
            break;
        }
        PyObject **entry = items_of(found, 4, "what is pending");
        uint64_t cookie, command, bytes;
        if (entry == NULL || !read_u64(entry[0], &cookie) || !read_u64(entry[1], &command) ||
            !read_u64(entry[3], &bytes))
            goto failed;
        int has_failed = PyObject_IsTrue(reply[1]);
        if (has_failed < 0)
            goto failed;
        if (command != NBD_WRITE || has_failed)
            break;
        if (PyDict_DelItem(pending, reply[0]) < 0)
            goto failed;
        char *at = PyBytes_AS_STRING(answers) + done * NBD_REPLY_BYTES;
        write_32(at, NBD_SIMPLE_REPLY_MAGIC);
        write_32(at + 4, 0);
        write_64(at + 8, cookie);
        inflight += bytes;
    }
    Py_DECREF(replies);
    if (_PyBytes_Resize(&answers, done * NBD_REPLY_BYTES) < 0)
        return NULL;
    return Py_BuildValue("NKn", answers, (unsigned long long)inflight, done);

failed:
    Py_DECREF(replies);
    Py_XDECREF(answers);
    return NULL;
}

/* --- the module --- */

static bool
fetch_number(const char *module_name, const char *name, uint64_t *value)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *number = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    bool found = number != NULL && read_u64(number, value);
    Py_XDECREF(number);
    Py_XDECREF(module);
    return found;
}

/* A named tuple, which is a tuple and nothing besides. */
static PyTypeObject *
new_record_type(PyObject *module, const char *name)
{
    PyObject *type = PyObject_GetAttrString(module, name);
    if (type != NULL &&
        !(PyType_Check(type) && PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type) &&
          ((PyTypeObject *)type)->tp_basicsize == PyTuple_Type.tp_basicsize)) {
        PyErr_Format(PyExc_TypeError, "%s is no named tuple", name);
        Py_CLEAR(type);
    }
    return (PyTypeObject *)type;
}

static int
fill(PyObject *module)
{
    State *state = PyModule_GetState(module);
    PyObject *messages = PyImport_ImportModule("holdfast.messages");
    if (messages == NULL)
        return -1;
    state->op = new_record_type(messages, "Op");
    state->request = new_record_type(messages, "Request");
    state->reply = new_record_type(messages, "Reply");
    Py_DECREF(messages);
    state->nothing = PyBytes_FromStringAndSize(NULL, 0);
    uint64_t sector_bytes;
    if (state->op == NULL || state->request == NULL || state->reply == NULL || state->nothing == NULL ||
        !fetch_number("holdfast.units", "REGION_BYTES", &state->region_bytes) ||
        !fetch_number("holdfast.units", "CHUNK_BYTES", &state->chunk_bytes) ||
        !fetch_number("holdfast.units", "REQUEST_BYTES_MAX", &state->request_bytes_max) ||
        !fetch_number("holdfast.units", "SECTOR_BYTES", &sector_bytes))
        return -1;
    state->misaligned = sector_bytes - 1;
    return 0;
}

static int
visit_state(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->op);
    Py_VISIT(state->request);
    Py_VISIT(state->reply);
    return 0;
}

static int
clear_state(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->op);
    Py_CLEAR(state->request);
    Py_CLEAR(state->reply);
    Py_CLEAR(state->nothing);
    return 0;
}

#define LOOP(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}

static PyMethodDef loops[] = {
    LOOP(pack_ops),      LOOP(unpack_ops),    LOOP(note_ops),      LOOP(plain_writes),
    LOOP(keep_requests), LOOP(settle_writes), LOOP(note_chunks),   LOOP(write_ops),
    LOOP(take_requests), LOOP(answer_writes), {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "holdfast._loops",
    .m_doc = "The compiled twins of loops over single requests and operations; see holdfast.compiled.",
    .m_size = sizeof(State),
    .m_methods = loops,
    .m_slots = slots,
    .m_traverse = visit_state,
    .m_clear = clear_state,
};

PyMODINIT_FUNC
PyInit__loops(void)
{
    return PyModuleDef_Init(&definition);
}
