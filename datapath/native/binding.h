/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of Python's view share: module.c, binding_carrier.c, binding_session.c. */
#ifndef ZDP_BINDING_H
#define ZDP_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>

#include "carrier.h"

typedef struct {
	PyObject_HEAD
	struct zdp_carrier *carrier;
	size_t cid_bytes;
} Carrier;

typedef struct {
	PyObject_HEAD
	Carrier *carrier;
	bool is_open;
	struct zdp_session session;
} Session;

extern PyTypeObject zdp_carrier_type, zdp_session_type;

static inline double zdp_to_seconds(uint64_t ns)
{
	return ns == ZDP_NEVER ? Py_HUGE_VAL : (double)ns / 1e9;
}

#endif
