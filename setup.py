"""The native packet engine. It is optional: without a compiler zgate runs its Python engine."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("datapath/native")

setup(
    ext_modules=[
        Extension(
            "zgate_datapath._native",
            sources=sorted(str(path) for path in NATIVE.glob("*.c")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            libraries=["crypto", "dl"],
            extra_compile_args=["-std=gnu11", "-O3", "-fvisibility=hidden"],
            optional=True,
        )
    ]
)
