/* SPDX-License-Identifier: Apache-2.0 */
/* The type Carrier, and the event loop's wait. */
#include "binding.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sys/epoll.h>

/* Addresses: (host, port) or (host, port, flow, scope), as the socket module has them; one element
 * more is the local address. */

static PyObject *path_to_python(const struct zdp_path *path)
{
	const struct sockaddr_in *ipv4 = &path->peer.ipv4;
	const struct sockaddr_in6 *ipv6 = &path->peer.ipv6;
	const char *local = (const char *)path->local.bytes;
	const Py_ssize_t local_bytes = path->local.count;
	char host[INET6_ADDRSTRLEN];

	if (path->peer.any.sa_family == AF_INET) {
		inet_ntop(AF_INET, &ipv4->sin_addr, host, sizeof(host));
		return Py_BuildValue(local_bytes ? "(sHy#)" : "(sH)", host, ntohs(ipv4->sin_port),
				     local, local_bytes);
	}
	inet_ntop(AF_INET6, &ipv6->sin6_addr, host, sizeof(host));
	return Py_BuildValue(local_bytes ? "(sHIIy#)" : "(sHII)", host, ntohs(ipv6->sin6_port),
			     ntohl(ipv6->sin6_flowinfo), ipv6->sin6_scope_id, local, local_bytes);
}

static int carrier_init(Carrier *self, PyObject *args, PyObject *named)
{
	static char *names[] = { "udp_fd", "cid_bytes", NULL };
	int udp_fd;
	Py_ssize_t cid_bytes;

	if (!PyArg_ParseTupleAndKeywords(args, named, "in", names, &udp_fd, &cid_bytes))
		return -1;
	if (cid_bytes < 1 || cid_bytes > ZDP_MAX_CID_BYTES || self->carrier) {
		PyErr_SetString(PyExc_ValueError, "cid_bytes: expected 1 to 20, once");
		return -1;
	}
	self->cid_bytes = (size_t)cid_bytes;
	self->carrier = zdp_carrier_new(udp_fd, self->cid_bytes);
	if (!self->carrier)
		PyErr_NoMemory();
	return self->carrier ? 0 : -1;
}

/* Sessions hold their carrier: none is left by now. */
static void carrier_dealloc(Carrier *self)
{
	zdp_carrier_free(self->carrier);
	Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *carrier_set_udp(Carrier *self, PyObject *args)
{
	int fd;

	if (!PyArg_ParseTuple(args, "i", &fd))
		return NULL;
	zdp_carrier_set_udp(self->carrier, fd);
	Py_RETURN_NONE;
}

static PyObject *carrier_set_tun(Carrier *self, PyObject *args)
{
	int fd, tcp, udp;

	if (!PyArg_ParseTuple(args, "ipp", &fd, &tcp, &udp))
		return NULL;
	if (!zdp_carrier_set_tun(self->carrier, fd, tcp, udp))
		return PyErr_NoMemory();
	Py_RETURN_NONE;
}

static PyObject *carrier_set_only(Carrier *self, PyObject *args)
{
	PyObject *session;

	if (!PyArg_ParseTuple(args, "O", &session))
		return NULL;
	if (session != Py_None && !PyObject_TypeCheck(session, &zdp_session_type)) {
		PyErr_SetString(PyExc_TypeError, "expected a Session or None");
		return NULL;
	}
	zdp_carrier_set_only(self->carrier,
			     session == Py_None ? NULL : &((Session *)session)->session);
	Py_RETURN_NONE;
}

static PyObject *report_to_python(const struct zdp_reports *reports, const struct zdp_report *item)
{
	PyObject *session = item->session ? (PyObject *)item->session->owner : Py_None;
	PyObject *address = Py_None;
	PyObject *tuple;

	/* What follows makes objects, and so may collect garbage: this session perhaps. */
	Py_INCREF(session);
	if (item->kind == ZDP_REPORT_PACKET) {
		address = path_to_python(&item->path);
		if (!address) {
			Py_DECREF(session);
			return NULL;
		}
	} else {
		Py_INCREF(address);
	}
	/* A NULL would become None. */
	tuple = Py_BuildValue("(iNy#IN)", (int)item->kind, session,
			      item->bytes ? (const char *)reports->data + item->offset : "",
			      (Py_ssize_t)item->bytes, item->number, address);
	return tuple;
}

static PyObject *take_reports(Carrier *self)
{
	struct zdp_reports *reports = zdp_carrier_reports(self->carrier);
	PyObject *list = PyList_New(reports->count);

	for (uint32_t i = 0; list && i < reports->count; i++) {
		PyObject *tuple = report_to_python(reports, &reports->items[i]);

		if (tuple)
			PyList_SET_ITEM(list, i, tuple);
		else
			Py_CLEAR(list);
	}
	reports->count = reports->bytes = 0;
	return list;
}

static PyObject *carrier_run(Carrier *self, PyObject *args)
{
	unsigned long long limit_ns;
	PyObject *reports;
	bool more;

	if (!PyArg_ParseTuple(args, "K", &limit_ns))
		return NULL;
	more = zdp_carrier_run(self->carrier, limit_ns);
	reports = take_reports(self);
	return reports ? Py_BuildValue("(NN)", PyBool_FromLong(more), reports) : NULL;
}

#define WAIT_EVENTS 64
/* How long one run may keep whoever waits beside the packets waiting. */
#define WAIT_RUN_NS 1000000ULL

/* Waits with the GIL given up; errno stays. */
static int wait_events(int epoll_fd, struct epoll_event *events, uint64_t wait_ns)
{
	const struct timespec timeout = { .tv_sec = (time_t)(wait_ns / 1000000000ULL),
					  .tv_nsec = (long)(wait_ns % 1000000000ULL) };
	int count;

	Py_BEGIN_ALLOW_THREADS
	count = epoll_pwait2(epoll_fd, events, WAIT_EVENTS, wait_ns == ZDP_NEVER ? NULL : &timeout,
			     NULL);
	Py_END_ALLOW_THREADS
	return count;
}

/* Takes out of `events` what is the carrier's own; the number of those that are left. */
static int sift(const struct zdp_carrier *carrier, struct epoll_event *events, int count, bool *own,
		bool *error)
{
	int kept = 0;

	*own = *error = false;
	for (int i = 0; i < count; i++) {
		if (!zdp_carrier_owns(carrier, events[i].data.fd)) {
			events[kept++] = events[i];
			continue;
		}
		*own = true;
		*error = *error || events[i].events & EPOLLERR;
	}
	return kept;
}

/* The way of every packet but a few: epoll says that a descriptor is ready, the carrier runs, and
 * Python hears nothing of it. Returns for what is not the carrier's own: the number of events, or 0
 * when `until_ns` has come or (`*is_wanted`) Python must look. -1: an exception, or errno. */
static int wait_and_carry(struct zdp_carrier *carrier, int epoll_fd, struct epoll_event *events,
			  uint64_t until_ns, bool *is_wanted)
{
	bool more = false, own, error;

	for (;;) {
		uint64_t now_ns = zdp_now_ns();
		const uint64_t due_ns = zdp_carrier_deadline(carrier, now_ns);
		const uint64_t wake_ns = due_ns < until_ns ? due_ns : until_ns;
		uint64_t wait_ns = ZDP_NEVER;
		int count;

		/* A signal that comes while packets are carried interrupts no wait. */
		if (PyErr_CheckSignals())
			return -1;
		if (more || wake_ns <= now_ns)
			wait_ns = 0;
		else if (wake_ns != ZDP_NEVER)
			wait_ns = wake_ns - now_ns;
		count = wait_events(epoll_fd, events, wait_ns);
		if (count < 0)
			return -1;
		count = sift(carrier, events, count, &own, &error);
		now_ns = zdp_now_ns();
		more = (own || due_ns <= now_ns) && zdp_carrier_run(carrier, WAIT_RUN_NS);
		*is_wanted = error || zdp_carrier_is_wanted(carrier);
		if (count || *is_wanted || now_ns >= until_ns)
			return count;
	}
}

static PyObject *carrier_wait(Carrier *self, PyObject *args)
{
	struct epoll_event events[WAIT_EVENTS];
	double timeout_s;
	uint64_t until_ns;
	bool is_wanted = false;
	PyObject *list;
	int epoll_fd, count;

	if (!PyArg_ParseTuple(args, "id", &epoll_fd, &timeout_s))
		return NULL;
	until_ns = timeout_s < 0 ? ZDP_NEVER : zdp_now_ns() + (uint64_t)(timeout_s * 1e9);
	count = wait_and_carry(self->carrier, epoll_fd, events, until_ns, &is_wanted);
	if (count < 0) {
		if (PyErr_Occurred()) /* out of a signal handler */
			return NULL;
		if (errno != EINTR)
			return PyErr_SetFromErrno(PyExc_OSError);
		count = 0;
	}
	list = PyList_New(count);
	for (int i = 0; list && i < count; i++) {
		PyObject *event = Py_BuildValue("(iI)", events[i].data.fd, events[i].events);

		if (event)
			PyList_SET_ITEM(list, i, event);
		else
			Py_CLEAR(list);
	}
	return list ? Py_BuildValue("(NN)", list, PyBool_FromLong(is_wanted)) : NULL;
}

static PyObject *carrier_flush(Carrier *self, PyObject *unused)
{
	(void)unused;
	zdp_carrier_flush(self->carrier);
	return take_reports(self);
}

static PyObject *carrier_deadline(Carrier *self, PyObject *unused)
{
	(void)unused;
	return PyFloat_FromDouble(
		zdp_to_seconds(zdp_carrier_deadline(self->carrier, zdp_now_ns())));
}

static PyObject *carrier_take_error(Carrier *self, PyObject *unused)
{
	(void)unused;
	return PyBool_FromLong(zdp_carrier_take_error(self->carrier));
}

static PyObject *carrier_tun_is_gone(Carrier *self, PyObject *unused)
{
	(void)unused;
	return PyBool_FromLong(zdp_carrier_tun_is_gone(self->carrier));
}

static PyObject *carrier_counters(Carrier *self, PyObject *unused)
{
	const struct zdp_carrier_counters *c = zdp_carrier_counters(self->carrier);
	struct zdp_coalesce_stats tun;

	(void)unused;
	zdp_carrier_tun_stats(self->carrier, &tun);
	return Py_BuildValue(
		"{sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK}", "received_packets",
		c->received_packets, "received_bytes", c->received_bytes, "receive_calls",
		c->receive_calls, "sent_packets", c->sent_packets, "sent_bytes", c->sent_bytes,
		"send_calls", c->send_calls, "send_dropped", c->send_dropped, "tun_reads",
		c->tun_reads, "tun_read_bytes", c->tun_read_bytes, "no_session", c->no_session,
		"tun_packets", tun.packets, "tun_writes", tun.writes, "tun_merged_packets",
		tun.merged_packets, "tun_failed_packets", tun.failed_packets, "lost_reports",
		zdp_carrier_reports(self->carrier)->lost);
}

static PyObject *get_received_packets(Carrier *self, void *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLongLong(zdp_carrier_counters(self->carrier)->received_packets);
}

static PyGetSetDef carrier_properties[] = {
	{ "received_packets", (getter)get_received_packets, NULL, NULL, NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyMethodDef carrier_methods[] = {
	{ "set_udp", (PyCFunction)carrier_set_udp, METH_VARARGS, NULL },
	{ "set_tun", (PyCFunction)carrier_set_tun, METH_VARARGS, NULL },
	{ "set_only", (PyCFunction)carrier_set_only, METH_VARARGS, NULL },
	{ "run", (PyCFunction)carrier_run, METH_VARARGS, NULL },
	{ "wait", (PyCFunction)carrier_wait, METH_VARARGS, NULL },
	{ "flush", (PyCFunction)carrier_flush, METH_NOARGS, NULL },
	{ "deadline", (PyCFunction)carrier_deadline, METH_NOARGS, NULL },
	{ "take_error", (PyCFunction)carrier_take_error, METH_NOARGS, NULL },
	{ "tun_is_gone", (PyCFunction)carrier_tun_is_gone, METH_NOARGS, NULL },
	{ "counters", (PyCFunction)carrier_counters, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

PyTypeObject zdp_carrier_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "zgate_datapath._native.Carrier",
	.tp_basicsize = sizeof(Carrier),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = PyType_GenericNew,
	.tp_init = (initproc)carrier_init,
	.tp_dealloc = (destructor)carrier_dealloc,
	.tp_methods = carrier_methods,
	.tp_getset = carrier_properties,
};
