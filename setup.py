"""Package metadata of msdata and mstrain; the settings of the tools stand in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent

EXTRAS = {
    "hdf5": ["h5py>=3.11"],
    "zarr": ["zarr>=3.0"],
    "coded": ["numcodecs>=0.13"],
    "zmq": ["pyzmq>=26"],
    # MPICH 5.0 sends what lies behind its address on the heap along, which can be more than
    # Slurm's PMI takes: ranks then wait for ever.
    "mpi": ["mpi4py>=4.0", "mpich>=4.2,<5"],
    "dali": ["nvidia-dali-cuda120>=1.50"],
    "dali-cuda13": ["nvidia-dali-cuda130>=1.52"],
    "train": [
        *("torch>=2.7", "safetensors>=0.5", "tensorboard>=2.16", "matplotlib>=3.9"),
        "scipy>=1.13",
    ],
    "flow": ["zuko>=1.5"],
    "calibrate": ["scikit-learn>=1.7"],
    # scikit-learn for importances.
    "tune": ["optuna>=5.0", "scikit-learn>=1.7"],
    "mock": ["kcorrect>=5.1", "speclite>=0.20", "scipy>=1.13"],
    "catalog": ["astropy-healpix>=1.0", "matplotlib>=3.9", "scipy>=1.13"],
    # The peers that install beside the rest; benchmarks/peers/no-deps.txt has the others.
    "bench": [
        *("webdataset>=1.0", "matplotlib>=3.9", "psutil>=5.9", "scikit-learn>=1.4"),
        *("grain>=0.2.15", "array_record>=0.8; sys_platform == 'linux'", "portpicker>=1.6"),
        *("spdl>=0.1.6", "zarr>=3.0"),
    ],
}
# The two DALI builds install the same module, so `all` takes the one for CUDA 12.
EXTRAS["all"] = sorted({p for name, ps in EXTRAS.items() if name != "dali-cuda13" for p in ps})
EXTRAS["dev"] = [
    "hdf5plugin>=4.4",
    "hypothesis>=6.100",
    "mkdocs-material>=9.6",
    "mkdocstrings[python]>=0.30",
    "mlcroissant>=1.0",
    "mypy>=1.10",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "qp-prob>=1.1",
    "ruff>=0.6",
    "scoringrules>=0.8",
    "torchdata>=0.11",
]

setup(
    name="msdata",
    version="0.1.0",
    description="Keeps GPUs fed: packs, plans, caches and loads galaxy cutouts on HPC clusters",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["msdata*", "mstrain*"]),
    # Optional: without a compiler the loader reads with preadv, a fifth slower, and NumPy decodes.
    ext_modules=[
        Extension(
            f"msdata.core._{name}",
            [f"msdata/core/{name}.c"],
            depends=["msdata/core/streaming.h"],
            # Without contraction: NumPy, which computes the same, rounds every step.
            extra_compile_args=["-O3", "-ffp-contract=off"],
            optional=True,
        )
        for name in ("stream_fill", "coding")
    ],
    package_data={
        "msdata": [
            "py.typed",
            "core/*.pyi",
            "catalog/build/recipes/*.toml",
            "catalog/build/recipes/*.sql",
            "catalog/build/surveys/*.md",
            "sources/surveys/*.toml",
        ],
        "mstrain": ["py.typed", "study/specs/*.toml"],
    },
    install_requires=[
        "numpy>=2.0",
        "pyarrow>=16",
        "crc32c>=2.7",
        # The build without windows: the other one needs libGL and X11, which compute nodes lack.
        "opencv-python-headless>=5.0",
        "astropy>=6.1",
        "requests>=2.32",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["msdata = msdata.cli:main", "mstrain = mstrain.cli:main"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Astronomy",
    ],
)
