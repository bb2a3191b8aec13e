/* SPDX-License-Identifier: Apache-2.0 */
/* bcc includes it; network programs need nothing of it. */
