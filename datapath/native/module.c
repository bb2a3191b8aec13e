/* SPDX-License-Identifier: Apache-2.0 */
/* Python's view of the engine: `zgate_datapath._native`. Thin: it converts and checks arguments.
 *
 * The types and their methods are described in zgate_datapath/_native.pyi. */
#include "binding.h"

#include <malloc.h>

#define KEPT_HEAP_BYTES (16 << 20)
#define MAPPED_BLOCK_BYTES (1 << 20)

static PyObject *crypto_backend(PyObject *self, PyObject *unused)
{
	(void)self;
	(void)unused;
	return PyUnicode_FromString(zdp_crypto_backend());
}

static PyObject *segments_of(struct zdp_segmenter *segmenter)
{
	PyObject *found = PyList_New(0);
	size_t bytes;

	while (found && (bytes = zdp_segment_bytes(segmenter))) {
		PyObject *one = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);

		if (!one) {
			Py_CLEAR(found);
			break;
		}
		zdp_segment_next(segmenter, (uint8_t *)PyBytes_AS_STRING(one));
		if (PyList_Append(found, one))
			Py_CLEAR(found);
		Py_DECREF(one);
	}
	return found;
}

static PyObject *segments(PyObject *self, PyObject *args)
{
	struct zdp_segmenter segmenter;
	enum zdp_segment_error error;
	PyObject *found;
	Py_buffer read;
	Py_ssize_t max_bytes;

	(void)self;
	if (!PyArg_ParseTuple(args, "y*n", &read, &max_bytes))
		return NULL;
	error = max_bytes < 0 ? ZDP_SEGMENT_TOO_BIG :
				zdp_segment_begin(&segmenter, read.buf, (size_t)read.len,
						  (size_t)max_bytes);
	if (error == ZDP_SEGMENT_OK)
		found = segments_of(&segmenter);
	else if (error == ZDP_SEGMENT_TOO_BIG)
		found = Py_NewRef(Py_None);
	else
		found = PyList_New(0);
	PyBuffer_Release(&read);
	return found;
}

static PyMethodDef module_methods[] = {
	{ "segments", segments, METH_VARARGS, NULL },
	{ "crypto_backend", crypto_backend, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1, .m_methods = module_methods,
};

static bool add_constants(PyObject *made)
{
	static const struct {
		const char *name;
		long value;
	} constants[] = {
		{ "REPORT_PACKET", ZDP_REPORT_PACKET },
		{ "REPORT_DATAGRAM", ZDP_REPORT_DATAGRAM },
		{ "REPORT_READ", ZDP_REPORT_READ },
		{ "REPORT_PROBE_ACKED", ZDP_REPORT_PROBE_ACKED },
		{ "REPORT_PROBE_LOST", ZDP_REPORT_PROBE_LOST },
		{ "REPORT_BAD_ACK", ZDP_REPORT_BAD_ACK },
		{ "REPORT_AEAD_LIMIT", ZDP_REPORT_AEAD_LIMIT },
		{ "REPORT_KEY_WORN", ZDP_REPORT_KEY_WORN },
		{ "SEND_DONE", ZDP_SEND_DONE },
		{ "SEND_DROPPED", ZDP_SEND_DROPPED },
		{ "SEND_TOO_BIG", ZDP_SEND_TOO_BIG },
		{ "CONGESTION_NONE", ZDP_CONGESTION_NONE },
		{ "CONGESTION_MODEL", ZDP_CONGESTION_MODEL },
		{ "CONGESTION_CUBIC", ZDP_CONGESTION_CUBIC },
		{ "AES_128_GCM", ZDP_AES_128_GCM },
		{ "AES_256_GCM", ZDP_AES_256_GCM },
		{ "CHACHA20_POLY1305", ZDP_CHACHA20_POLY1305 },
		{ "VNET_HEADER_BYTES", ZDP_VNET_BYTES },
	};

	for (size_t i = 0; i < sizeof(constants) / sizeof(*constants); i++)
		if (PyModule_AddIntConstant(made, constants[i].name, constants[i].value))
			return false;
	return true;
}

PyMODINIT_FUNC PyInit__native(void)
{
	PyObject *made;

	/* Queues hold blocks of 64 kB for a moment each: given back to the kernel and asked for again,
	 * every one of them would be cleared page by page. */
	mallopt(M_TRIM_THRESHOLD, KEPT_HEAP_BYTES);
	mallopt(M_MMAP_THRESHOLD, MAPPED_BLOCK_BYTES);
	if (PyType_Ready(&zdp_carrier_type) || PyType_Ready(&zdp_session_type))
		return NULL;
	made = PyModule_Create(&module);
	if (!made)
		return NULL;
	if (PyModule_AddObjectRef(made, "Carrier", (PyObject *)&zdp_carrier_type) ||
	    PyModule_AddObjectRef(made, "Session", (PyObject *)&zdp_session_type) ||
	    !add_constants(made)) {
		Py_DECREF(made);
		return NULL;
	}
	return made;
}
