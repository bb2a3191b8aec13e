/* SPDX-License-Identifier: Apache-2.0 */
/* What harnesses share. */
#ifndef ZDP_FUZZ_H
#define ZDP_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A wrong answer is a finding. */
#define check(condition)                                                                      \
	do {                                                                                  \
		if (!(condition)) {                                                           \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                              \
		}                                                                             \
	} while (0)

/* The input, taken from the front; zeros when it is used up. */
struct input {
	const uint8_t *at, *end;
};

static inline uint8_t take_byte(struct input *input)
{
	return input->at < input->end ? *input->at++ : 0;
}

static inline uint64_t take_number(struct input *input, size_t bytes)
{
	uint64_t number = 0;

	while (bytes--)
		number = number << 8 | take_byte(input);
	return number;
}

static inline size_t left(const struct input *input)
{
	return (size_t)(input->end - input->at);
}

/* At most `bytes` of the input in a block of their own, so that a read behind it is seen. Free it. */
static inline uint8_t *take_block(struct input *input, size_t *bytes)
{
	uint8_t *block;

	if (*bytes > left(input))
		*bytes = left(input);
	block = malloc(*bytes ? *bytes : 1);
	check(block);
	if (*bytes)
		memcpy(block, input->at, *bytes);
	input->at += *bytes;
	return block;
}

#endif
