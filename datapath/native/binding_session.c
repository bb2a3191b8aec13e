/* SPDX-License-Identifier: Apache-2.0 */
/* The type Session. */
#include "binding.h"

#include <structmember.h>

#include <arpa/inet.h>

#include "bytes.h"

/* Addresses: (host, port) or (host, port, flow, scope), as the socket module has them; one element
 * more is the local address. */

static bool local_from_python(PyObject *element, struct zdp_local *local)
{
	const bool is_bytes = PyBytes_Check(element);
	const Py_ssize_t count = is_bytes ? PyBytes_GET_SIZE(element) : 0;

	if (count != ZDP_LOCAL_IPV4_BYTES && count != ZDP_LOCAL_IPV6_BYTES) {
		PyErr_SetString(PyExc_ValueError, "a local address has 12 or 20 bytes");
		return false;
	}
	memcpy(local->bytes, PyBytes_AS_STRING(element), (size_t)count);
	local->count = (uint8_t)count;
	return true;
}

static bool path_from_python(PyObject *tuple, struct zdp_path *path)
{
	const Py_ssize_t size = PyTuple_GET_SIZE(tuple);
	union zdp_address *peer = &path->peer;
	unsigned int port, flow = 0, scope = 0;
	PyObject *local = NULL;
	const char *host;

	memset(path, 0, sizeof(*path));
	if (size == 3 ? !PyArg_ParseTuple(tuple, "sIO", &host, &port, &local) :
			!PyArg_ParseTuple(tuple, "sI|IIO", &host, &port, &flow, &scope, &local))
		return false;
	if (local && !local_from_python(local, &path->local))
		return false;
	if (size <= 3) {
		path->peer_bytes = sizeof(peer->ipv4);
		peer->ipv4.sin_family = AF_INET;
		peer->ipv4.sin_port = htons((uint16_t)port);
		if (inet_pton(AF_INET, host, &peer->ipv4.sin_addr) == 1)
			return true;
	} else {
		path->peer_bytes = sizeof(peer->ipv6);
		peer->ipv6.sin6_family = AF_INET6;
		peer->ipv6.sin6_port = htons((uint16_t)port);
		peer->ipv6.sin6_flowinfo = htonl(flow);
		peer->ipv6.sin6_scope_id = scope;
		if (inet_pton(AF_INET6, host, &peer->ipv6.sin6_addr) == 1)
			return true;
	}
	PyErr_Format(PyExc_ValueError, "not an address: %s", host);
	return false;
}

static int session_init(Session *self, PyObject *args, PyObject *named)
{
	static char *names[] = { "carrier",		 "is_client",	     "congestion",
				 "max_packet_bytes",	 "initial_rtt_ns",   "peer_max_ack_delay_ns",
				 "peer_ack_delay_exponent", NULL };
	struct zdp_recovery_config config = { 0 };
	unsigned long long rtt_ns, ack_delay_ns;
	unsigned int congestion, packet_bytes, exponent;
	PyObject *carrier;
	int is_client;

	if (!PyArg_ParseTupleAndKeywords(args, named, "O!$pIIKKI", names, &zdp_carrier_type, &carrier,
					 &is_client, &congestion, &packet_bytes, &rtt_ns,
					 &ack_delay_ns, &exponent))
		return -1;
	if (self->carrier || congestion > ZDP_CONGESTION_CUBIC || exponent > 20) {
		PyErr_SetString(PyExc_ValueError, "congestion or exponent out of range");
		return -1;
	}
	config.congestion = (enum zdp_congestion)congestion;
	config.max_packet_bytes = packet_bytes;
	config.initial_rtt_ns = rtt_ns;
	config.peer_max_ack_delay_ns = ack_delay_ns;
	config.peer_ack_delay_exponent = (uint8_t)exponent;
	if (!zdp_session_init(&self->session, &config)) {
		PyErr_NoMemory();
		return -1;
	}
	Py_INCREF(carrier);
	self->carrier = (Carrier *)carrier;
	self->is_open = true;
	self->session.owner = self;
	self->session.opener.cid_bytes = (uint8_t)self->carrier->cid_bytes;
	self->session.is_client = is_client;
	return 0;
}

static void close_session(Session *self)
{
	if (self->is_open) {
		self->is_open = false;
		zdp_carrier_forget(self->carrier->carrier, &self->session);
		zdp_session_free(&self->session);
	}
}

static void session_dealloc(Session *self)
{
	close_session(self);
	Py_XDECREF(self->carrier);
	Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *session_close(Session *self, PyObject *unused)
{
	(void)unused;
	close_session(self);
	Py_RETURN_NONE;
}

/* Every method but close() needs an open session. */
static bool check_open(const Session *self)
{
	if (!self->is_open)
		PyErr_SetString(PyExc_ValueError, "the session is closed");
	return self->is_open;
}

/* The key that a method of an open session was given, and its phase; NULL with an exception. */
static struct zdp_key *given_key(const Session *self, PyObject *args, unsigned int *phase)
{
	unsigned int cipher;
	Py_buffer key, iv, header_key;
	struct zdp_key *made = NULL;

	if (!check_open(self) ||
	    !PyArg_ParseTuple(args, "Iy*y*y*I", &cipher, &key, &iv, &header_key, phase))
		return NULL;
	if (cipher > ZDP_CHACHA20_POLY1305 || iv.len != ZDP_IV_BYTES || *phase > 1 ||
	    (size_t)key.len != zdp_cipher_key_bytes((enum zdp_cipher)cipher) ||
	    header_key.len != key.len) {
		PyErr_SetString(PyExc_ValueError, "key, IV or header key of a wrong length");
	} else {
		made = zdp_key_new((enum zdp_cipher)cipher, key.buf, iv.buf, header_key.buf);
		if (!made)
			PyErr_SetString(PyExc_RuntimeError, "libcrypto refused the key");
	}
	PyBuffer_Release(&key);
	PyBuffer_Release(&iv);
	PyBuffer_Release(&header_key);
	return made;
}

static PyObject *session_set_receive_key(Session *self, PyObject *args)
{
	unsigned int phase;
	struct zdp_key *key = given_key(self, args, &phase);

	if (!key)
		return NULL;
	zdp_opener_set_key(&self->session.opener, key, (uint8_t)phase);
	Py_RETURN_NONE;
}

static PyObject *session_set_next_receive_key(Session *self, PyObject *args)
{
	unsigned int phase;
	struct zdp_key *key = given_key(self, args, &phase);

	if (!key)
		return NULL;
	zdp_opener_set_next(&self->session.opener, key);
	Py_RETURN_NONE;
}

static PyObject *session_set_send_key(Session *self, PyObject *args)
{
	unsigned int phase;
	struct zdp_key *key = given_key(self, args, &phase);

	if (!key)
		return NULL;
	zdp_sealer_set_key(&self->session.sealer, key, (uint8_t)phase);
	self->session.phase_began_at = self->session.sealer.next_number;
	self->session.key_told = false;
	Py_RETURN_NONE;
}

static PyObject *session_drop_previous_key(Session *self, PyObject *unused)
{
	(void)unused;
	if (!check_open(self))
		return NULL;
	zdp_opener_drop_previous(&self->session.opener);
	Py_RETURN_NONE;
}

static PyObject *change_cid(Session *self, PyObject *args, bool add)
{
	struct zdp_table *table;
	Py_buffer cid;
	bool done = false;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*", &cid))
		return NULL;
	table = zdp_carrier_by_cid(self->carrier->carrier);
	if ((size_t)cid.len == self->session.opener.cid_bytes) {
		if (add)
			done = zdp_table_put(table, cid.buf, (size_t)cid.len, &self->session);
		else
			done = zdp_table_remove(table, cid.buf, (size_t)cid.len, &self->session);
	}
	PyBuffer_Release(&cid);
	if (!done) {
		PyErr_SetString(PyExc_ValueError, "a connection ID of another length, or not ours");
		return NULL;
	}
	Py_RETURN_NONE;
}

static PyObject *session_add_cid(Session *self, PyObject *args)
{
	return change_cid(self, args, true);
}

static PyObject *session_remove_cid(Session *self, PyObject *args)
{
	return change_cid(self, args, false);
}

static PyObject *session_set_peer_cid(Session *self, PyObject *args)
{
	Py_buffer cid;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*", &cid))
		return NULL;
	if (cid.len <= ZDP_MAX_CID_BYTES) {
		memcpy(self->session.sealer.cid, cid.buf, (size_t)cid.len);
		self->session.sealer.cid_bytes = (uint8_t)cid.len;
	} else {
		PyErr_SetString(PyExc_ValueError, "a connection ID has at most 20 bytes");
	}
	PyBuffer_Release(&cid);
	if (PyErr_Occurred())
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *session_set_path(Session *self, PyObject *args)
{
	PyObject *tuple;

	if (!check_open(self) || !PyArg_ParseTuple(args, "O!", &PyTuple_Type, &tuple))
		return NULL;
	if (!path_from_python(tuple, &self->session.path))
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *session_path_changed(Session *self, PyObject *unused)
{
	(void)unused;
	if (!check_open(self))
		return NULL;
	zdp_recovery_path_changed(self->session.recovery);
	Py_RETURN_NONE;
}

static PyObject *session_set_limits(Session *self, PyObject *args)
{
	unsigned int packet_bytes, frame_payload_bytes;

	if (!check_open(self) || !PyArg_ParseTuple(args, "II", &packet_bytes, &frame_payload_bytes))
		return NULL;
	if (frame_payload_bytes > UINT16_MAX)
		frame_payload_bytes = UINT16_MAX;
	if (!packet_bytes || packet_bytes > UINT16_MAX) {
		PyErr_SetString(PyExc_ValueError, "a UDP payload has 1 to 65535 bytes");
		return NULL;
	}
	self->session.max_packet_bytes = packet_bytes;
	self->session.max_frame_payload_bytes = frame_payload_bytes;
	zdp_recovery_set_packet_bytes(self->session.recovery, packet_bytes);
	Py_RETURN_NONE;
}

static PyObject *session_set_prefix(Session *self, PyObject *args)
{
	Py_buffer prefix;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*", &prefix))
		return NULL;
	if (prefix.len && prefix.len <= ZDP_PREFIX_MAX_BYTES) {
		memcpy(self->session.prefix, prefix.buf, (size_t)prefix.len);
		self->session.prefix_bytes = (uint8_t)prefix.len;
	} else {
		PyErr_SetString(PyExc_ValueError, "a prefix has 1 to 16 bytes");
	}
	PyBuffer_Release(&prefix);
	if (PyErr_Occurred())
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *session_note_received(Session *self, PyObject *args)
{
	unsigned long long first, last;
	int eliciting;

	if (!check_open(self) || !PyArg_ParseTuple(args, "KKp", &first, &last, &eliciting))
		return NULL;
	if (last < first || last - first > ZDP_REPLAY_WINDOW_PACKETS) {
		PyErr_SetString(PyExc_ValueError, "no such range of packet numbers");
		return NULL;
	}
	if (!zdp_session_note_received(&self->session, first, last, eliciting, zdp_now_ns()))
		return PyErr_NoMemory();
	zdp_carrier_activate(self->carrier->carrier, &self->session);
	Py_RETURN_NONE;
}

static PyObject *session_has_received(Session *self, PyObject *args)
{
	unsigned long long number;

	if (!check_open(self) || !PyArg_ParseTuple(args, "K", &number))
		return NULL;
	return PyBool_FromLong(zdp_replay_seen(&self->session.opener.window, number));
}

static PyObject *session_send_frame(Session *self, PyObject *args)
{
	enum zdp_send_result result;
	Py_buffer payload;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*", &payload))
		return NULL;
	result = zdp_session_send_frame(&self->session,
					zdp_carrier_outbox(self->carrier->carrier), payload.buf,
					(size_t)payload.len, zdp_now_ns());
	PyBuffer_Release(&payload);
	zdp_carrier_activate(self->carrier->carrier, &self->session);
	return PyLong_FromLong(result);
}

static PyObject *session_send_read(Session *self, PyObject *args)
{
	enum zdp_send_result result;
	Py_buffer read;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*", &read))
		return NULL;
	result = zdp_session_send_read(&self->session, zdp_carrier_outbox(self->carrier->carrier),
				       read.buf, (size_t)read.len, true, zdp_now_ns());
	PyBuffer_Release(&read);
	zdp_carrier_activate(self->carrier->carrier, &self->session);
	return PyLong_FromLong(result);
}

static PyObject *session_seal_probe(Session *self, PyObject *args)
{
	unsigned int bytes;
	PyObject *packet;
	size_t sealed;

	if (!check_open(self) || !PyArg_ParseTuple(args, "I", &bytes))
		return NULL;
	if (bytes > UINT16_MAX) {
		PyErr_SetString(PyExc_ValueError, "no UDP payload has so many bytes");
		return NULL;
	}
	packet = PyBytes_FromStringAndSize(NULL, bytes);
	if (!packet)
		return NULL;
	sealed = zdp_session_seal_probe(&self->session, (uint8_t *)PyBytes_AS_STRING(packet), bytes,
					zdp_now_ns());
	zdp_carrier_activate(self->carrier->carrier, &self->session);
	if (!sealed) {
		Py_DECREF(packet);
		return PyBytes_FromStringAndSize(NULL, 0);
	}
	return packet;
}

static PyObject *session_add_address(Session *self, PyObject *args)
{
	Py_buffer address;
	bool done = false;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*", &address))
		return NULL;
	if (address.len == 4 || address.len == 16)
		done = zdp_table_put(zdp_carrier_by_address(self->carrier->carrier), address.buf,
				     (size_t)address.len, &self->session);
	PyBuffer_Release(&address);
	if (!done) {
		PyErr_SetString(PyExc_ValueError, "an address has 4 or 16 bytes");
		return NULL;
	}
	Py_RETURN_NONE;
}

static PyObject *session_remove_address(Session *self, PyObject *args)
{
	Py_buffer address;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*", &address))
		return NULL;
	zdp_table_remove(zdp_carrier_by_address(self->carrier->carrier), address.buf,
			 (size_t)address.len, &self->session);
	PyBuffer_Release(&address);
	Py_RETURN_NONE;
}

static PyObject *session_add_network(Session *self, PyObject *args)
{
	Py_buffer address;
	unsigned int prefix_bits;
	bool done;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*I", &address, &prefix_bits))
		return NULL;
	done = zdp_networks_put(zdp_carrier_by_network(self->carrier->carrier), address.buf,
				(size_t)address.len, prefix_bits, &self->session);
	PyBuffer_Release(&address);
	if (!done) {
		PyErr_SetString(PyExc_ValueError, "no network, or one too many");
		return NULL;
	}
	Py_RETURN_NONE;
}

static PyObject *session_remove_network(Session *self, PyObject *args)
{
	Py_buffer address;
	unsigned int prefix_bits;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*I", &address, &prefix_bits))
		return NULL;
	zdp_networks_remove(zdp_carrier_by_network(self->carrier->carrier), address.buf,
			    (size_t)address.len, prefix_bits, &self->session);
	PyBuffer_Release(&address);
	Py_RETURN_NONE;
}

static PyObject *allow(Session *self, PyObject *args, struct zdp_pairs *pairs)
{
	Py_buffer addresses;
	bool done = false;

	if (!check_open(self) || !PyArg_ParseTuple(args, "y*", &addresses))
		return NULL;
	if (addresses.len == 8 || addresses.len == 32)
		done = zdp_pairs_add(pairs, addresses.len == 8 ? 4 : 6, addresses.buf);
	PyBuffer_Release(&addresses);
	if (!done) {
		PyErr_SetString(PyExc_ValueError, "a pair of addresses has 8 or 32 bytes");
		return NULL;
	}
	Py_RETURN_NONE;
}

static PyObject *session_allow_inbound(Session *self, PyObject *args)
{
	return allow(self, args, &self->session.inbound);
}

static PyObject *session_allow_outbound(Session *self, PyObject *args)
{
	return allow(self, args, &self->session.outbound);
}

static PyObject *session_forget_pairs(Session *self, PyObject *unused)
{
	(void)unused;
	if (!check_open(self))
		return NULL;
	zdp_pairs_clear(&self->session.inbound);
	zdp_pairs_clear(&self->session.outbound);
	Py_RETURN_NONE;
}

static PyObject *session_counters(Session *self, PyObject *unused)
{
	const struct zdp_session_counters *c = &self->session.counters;

	(void)unused;
	return Py_BuildValue("{sK sK sK sK sK sK sK sK sK sK sK sK sK}", "opened_packets",
			     c->opened_packets, "sealed_packets", c->sealed_packets,
			     "forged_packets", c->forged_packets, "duplicate_packets",
			     c->duplicate_packets, "foreign_packets", c->foreign_packets,
			     "received_packets", c->received_packets, "received_bytes",
			     c->received_bytes, "sent_packets", c->sent_packets, "sent_bytes",
			     c->sent_bytes, "queue_dropped", c->queue_dropped, "too_big",
			     c->too_big, "unsendable", c->unsendable, "acks_sent", c->acks_sent);
}

static PyObject *session_statistics(Session *self, PyObject *unused)
{
	const struct zdp_session *session = &self->session;
	struct zdp_recovery_stats s;

	(void)unused;
	if (!check_open(self))
		return NULL;
	zdp_recovery_stats(session->recovery, &s);
	return Py_BuildValue(
		"{sd sd sK sK sK sK sK sK sK sk sk}", "smoothed_rtt_s", zdp_to_seconds(s.smoothed_rtt_ns),
		"least_rtt_s", zdp_to_seconds(s.least_rtt_ns), "congestion_window_bytes", s.window_bytes,
		"bytes_in_flight", s.in_flight_bytes, "pacing_bytes_per_s", s.pacing_bytes_per_s,
		"delivery_bytes_per_s", s.delivery_bytes_per_s, "lost_packets", s.lost_packets,
		"acked_packets", s.acked_packets, "probe_timeouts", s.probe_timeouts,
		"queued_packets",
		(unsigned long)(session->queue ? zdp_queue_packets(session->queue) : 0),
		"queued_bytes",
		(unsigned long)(session->queue ? zdp_queue_bytes(session->queue) : 0));
}

static PyObject *get_next_number(Session *self, void *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLongLong(self->session.sealer.next_number);
}

static int set_next_number(Session *self, PyObject *value, void *unused)
{
	const unsigned long long number = PyLong_AsUnsignedLongLong(value);

	(void)unused;
	if (PyErr_Occurred())
		return -1;
	if (number < self->session.sealer.next_number || number > ZDP_VARINT_MAX) {
		/* The same number twice under one key would give the key away. */
		PyErr_SetString(PyExc_ValueError, "packet numbers only grow");
		return -1;
	}
	self->session.sealer.next_number = number;
	return 0;
}

static PyObject *get_may_send(Session *self, void *unused)
{
	(void)unused;
	return PyBool_FromLong(self->session.may_send);
}

static int set_may_send(Session *self, PyObject *value, void *unused)
{
	const int may_send = value ? PyObject_IsTrue(value) : -1;

	(void)unused;
	if (may_send < 0 || !check_open(self))
		return -1;
	/* What has waited for it goes out with the next round. */
	if (may_send && !self->session.may_send)
		zdp_carrier_activate(self->carrier->carrier, &self->session);
	self->session.may_send = may_send;
	return 0;
}

static PyObject *get_expected_number(Session *self, void *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLongLong(self->session.opener.window.next);
}

static PyObject *get_window_bytes(Session *self, void *unused)
{
	const struct zdp_session *session = &self->session;

	(void)unused;
	if (!self->is_open || !session->may_send || !session->sealer.key)
		return PyLong_FromLong(0);
	return PyLong_FromUnsignedLongLong(
		zdp_recovery_allowance(session->recovery, zdp_now_ns()));
}

static PyObject *get_last_received(Session *self, void *unused)
{
	(void)unused;
	return PyFloat_FromDouble(zdp_to_seconds(self->session.last_received_ns));
}

static PyObject *get_first_packet(Session *self, void *unused)
{
	(void)unused;
	return PyFloat_FromDouble(zdp_to_seconds(self->session.first_packet_ns));
}

static PyObject *get_first_sent(Session *self, void *unused)
{
	(void)unused;
	return PyFloat_FromDouble(zdp_to_seconds(self->session.first_sent_ns));
}

static PyGetSetDef session_properties[] = {
	{ "next_number", (getter)get_next_number, (setter)set_next_number, NULL, NULL },
	{ "may_send", (getter)get_may_send, (setter)set_may_send, NULL, NULL },
	{ "expected_number", (getter)get_expected_number, NULL, NULL, NULL },
	{ "window_bytes", (getter)get_window_bytes, NULL, NULL, NULL },
	{ "last_received_s", (getter)get_last_received, NULL, NULL, NULL },
	{ "first_packet_s", (getter)get_first_packet, NULL, NULL, NULL },
	{ "first_sent_s", (getter)get_first_sent, NULL, NULL, NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

#define FIELD(name) offsetof(Session, session.name)
static PyMemberDef session_members[] = {
	{ "unproved_bytes", T_ULONGLONG, FIELD(unproved_bytes), 0, NULL },
	{ "is_direct", T_BOOL, FIELD(is_direct), 0, NULL },
	{ "foreign_in_flight", T_BOOL, FIELD(foreign_in_flight), 0, NULL },
	{ "spin_is_off", T_BOOL, FIELD(spin_is_off), 0, NULL },
	{ "spin", T_BOOL, FIELD(sealer.spin), 0, NULL },
	{ "key_update_packets", T_ULONGLONG, FIELD(key_update_packets), 0, NULL },
	{ "is_open", T_BOOL, offsetof(Session, is_open), READONLY, NULL },
	{ NULL, 0, 0, 0, NULL },
};

static PyMethodDef session_methods[] = {
	{ "close", (PyCFunction)session_close, METH_NOARGS, NULL },
	{ "set_receive_key", (PyCFunction)session_set_receive_key, METH_VARARGS, NULL },
	{ "set_next_receive_key", (PyCFunction)session_set_next_receive_key, METH_VARARGS, NULL },
	{ "set_send_key", (PyCFunction)session_set_send_key, METH_VARARGS, NULL },
	{ "drop_previous_key", (PyCFunction)session_drop_previous_key, METH_NOARGS, NULL },
	{ "add_cid", (PyCFunction)session_add_cid, METH_VARARGS, NULL },
	{ "remove_cid", (PyCFunction)session_remove_cid, METH_VARARGS, NULL },
	{ "set_peer_cid", (PyCFunction)session_set_peer_cid, METH_VARARGS, NULL },
	{ "set_path", (PyCFunction)session_set_path, METH_VARARGS, NULL },
	{ "path_changed", (PyCFunction)session_path_changed, METH_NOARGS, NULL },
	{ "set_limits", (PyCFunction)session_set_limits, METH_VARARGS, NULL },
	{ "set_prefix", (PyCFunction)session_set_prefix, METH_VARARGS, NULL },
	{ "note_received", (PyCFunction)session_note_received, METH_VARARGS, NULL },
	{ "has_received", (PyCFunction)session_has_received, METH_VARARGS, NULL },
	{ "send_frame", (PyCFunction)session_send_frame, METH_VARARGS, NULL },
	{ "send_read", (PyCFunction)session_send_read, METH_VARARGS, NULL },
	{ "seal_probe", (PyCFunction)session_seal_probe, METH_VARARGS, NULL },
	{ "add_address", (PyCFunction)session_add_address, METH_VARARGS, NULL },
	{ "remove_address", (PyCFunction)session_remove_address, METH_VARARGS, NULL },
	{ "add_network", (PyCFunction)session_add_network, METH_VARARGS, NULL },
	{ "remove_network", (PyCFunction)session_remove_network, METH_VARARGS, NULL },
	{ "allow_inbound", (PyCFunction)session_allow_inbound, METH_VARARGS, NULL },
	{ "allow_outbound", (PyCFunction)session_allow_outbound, METH_VARARGS, NULL },
	{ "forget_pairs", (PyCFunction)session_forget_pairs, METH_NOARGS, NULL },
	{ "counters", (PyCFunction)session_counters, METH_NOARGS, NULL },
	{ "statistics", (PyCFunction)session_statistics, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

PyTypeObject zdp_session_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "zgate_datapath._native.Session",
	.tp_basicsize = sizeof(Session),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = PyType_GenericNew,
	.tp_init = (initproc)session_init,
	.tp_dealloc = (destructor)session_dealloc,
	.tp_methods = session_methods,
	.tp_members = session_members,
	.tp_getset = session_properties,
};
