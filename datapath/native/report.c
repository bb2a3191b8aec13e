/* SPDX-License-Identifier: Apache-2.0 */
#include "report.h"

#include <stdlib.h>
#include <string.h>

bool zdp_reports_are_many(const struct zdp_reports *reports)
{
	return reports->count >= ZDP_REPORTS_MAX / 2 || reports->bytes >= ZDP_REPORT_BYTES_MAX / 4;
}

/* Grows an array to hold `wanted` items of `size` bytes, at most `most`. */
static bool grow(void **items, uint32_t *capacity, uint32_t wanted, uint32_t most, size_t size)
{
	uint32_t fresh = *capacity ? *capacity : 64;
	void *grown;

	if (wanted <= *capacity)
		return true;
	if (wanted > most)
		return false;
	while (fresh < wanted)
		fresh *= 2;
	grown = realloc(*items, fresh * size);
	if (!grown)
		return false;
	*items = grown;
	*capacity = fresh;
	return true;
}

bool zdp_report(struct zdp_reports *reports, enum zdp_report_kind kind,
		struct zdp_session *session, const void *data, size_t bytes, uint32_t number,
		const struct zdp_path *path)
{
	struct zdp_report *item;

	if (!grow((void **)&reports->items, &reports->capacity, reports->count + 1,
		  ZDP_REPORTS_MAX, sizeof(*item)) ||
	    !grow((void **)&reports->data, &reports->bytes_capacity,
		  reports->bytes + (uint32_t)bytes, ZDP_REPORT_BYTES_MAX, 1)) {
		reports->lost++;
		return false;
	}
	item = &reports->items[reports->count++];
	memset(item, 0, sizeof(*item));
	item->kind = kind;
	item->session = session;
	item->offset = reports->bytes;
	item->bytes = (uint32_t)bytes;
	item->number = number;
	if (bytes)
		memcpy(reports->data + reports->bytes, data, bytes);
	reports->bytes += (uint32_t)bytes;
	if (path)
		item->path = *path;
	return true;
}

void zdp_reports_forget(struct zdp_reports *reports, const struct zdp_session *session)
{
	for (uint32_t i = 0; i < reports->count; i++)
		if (reports->items[i].session == session)
			reports->items[i].session = NULL;
}

void zdp_reports_free(struct zdp_reports *reports)
{
	free(reports->items);
	free(reports->data);
	memset(reports, 0, sizeof(*reports));
}
