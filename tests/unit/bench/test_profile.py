from bench.profile import engine_files, parse_script, step_of

SCRIPT = """
\tffffffff81c0 nft_do_chain+0x1f ([kernel.kallsyms])
\tffffffff81c1 ip_forward+0x2 ([kernel.kallsyms])
\tffffffff81c2 tun_get_user+0x3 ([kernel.kallsyms])
\tffffffff81c3 do_writev+0x4 ([kernel.kallsyms])
\t    7f001122 __writev+0x5 (/usr/lib/x86_64-linux-gnu/libc.so.6)

\tffffffff81d0 skb_copy_datagram_iter+0x1f ([kernel.kallsyms])
\tffffffff81d1 __x64_sys_recvmmsg+0x2 ([kernel.kallsyms])

\tffffffffc001 bpf_prog_1234_decide+0x9 (bpf_prog_1234_decide)
\tffffffff81c3 do_writev+0x4 ([kernel.kallsyms])

\t    7f001122 zdp_open_packets.part.0+0x5 (/somewhere/_native.cpython-311.so)

\t    7f001122 [unknown] (/usr/lib/x86_64-linux-gnu/libcrypto.so.3)

\t    7f001122 _PyEval_EvalFrameDefault+0x5 (/usr/bin/python3.11)

\tffffffff81c2 schedule+0x3 ([kernel.kallsyms])
"""


def test_samples_are_sorted_into_steps() -> None:
    assert [step_of(chain) for chain in parse_script(SCRIPT.splitlines())] == [
        "TUN write: conntrack, nftables",
        "UDP receive",
        "TUN write: policy (BPF)",
        "engine: packet.c",
        "AEAD, header protection",
        "Python, aioquic",
        "kernel: other",
    ]


def test_functions_are_found_in_their_files() -> None:
    files = engine_files()
    assert files["zdp_carrier_run"] == files["take_read"] == "carrier.c"
    assert files["zdp_session_receive"] == "session.c"
    assert files["copy_sum_avx2"] == "offload_checksum.c"
    assert files["zdp_segment_begin"] == "offload_segment.c"
