/* SPDX-License-Identifier: Apache-2.0 */
/* bcc includes this file before everything else. */
#ifndef ZG_KERNEL_STUB
#define ZG_KERNEL_STUB

/* bcc brings a linux/bpf.h of its own; the host's would define the same things again. */
#define __LINUX_BPF_H__

#include <asm-generic/int-ll64.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;

#define true 1
#define false 0
#define NULL ((void *)0)
#define PAGE_SIZE 4096UL
#define CONFIG_BPF_SYSCALL 1

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

struct pt_regs;

#endif
