"""Which package a module that is not installed comes with, and the line that installs it.

A module and its package often differ in name: protobuf is imported as google. Which extra brings a package stands in
the metadata of this project's own package. What reads that is imported once a package is missing: every command and
server imports this module.
"""

# Module -> its package, where more than a hyphen differs.
PACKAGES = {
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "google": "protobuf",
    "grpc": "grpcio",
    "mlflow": "mlflow-skinny",
    "opentelemetry": "opentelemetry-sdk",
    "simdjson": "pysimdjson",
    "sklearn": "scikit-learn",
    "xgboost": "xgboost-cpu",
    "yaml": "pyyaml",
}
_DEVELOPMENT = "dev"


def told(error: ModuleNotFoundError, extra: str) -> str:
    """The rest of a message of what needs `extra` to be installed: "the package 'protobuf': pip install …".

    `extra` is a name or more, with commas. Where it does not bring the package, the smallest that does is named, too.
    """
    name = package(error.name or "")
    extras = extra.split(",")
    brought = _packages_by_extra()
    if not any(name in brought.get(one, ()) for one in extras):
        others = [one for one, packages in brought.items() if name in packages and one != _DEVELOPMENT]
        extras += sorted(others, key=lambda one: (len(brought[one]), one))[:1]
    return f"the package '{name}': pip install 'bookserve[{','.join(extras)}]'"


def package(module: str) -> str:
    """The package that a module, as 'google.protobuf', comes with."""
    from packaging.utils import canonicalize_name

    top = module.partition(".")[0]
    return canonicalize_name(PACKAGES.get(top, top))


def _packages_by_extra() -> dict[str, set[str]]:
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found = metadata.metadata("bookserve")
    brought: dict[str, set[str]] = {extra: set() for extra in found.get_all("Provides-Extra") or ()}
    for line in found.get_all("Requires-Dist") or ():
        required = Requirement(line)
        for extra, packages in brought.items():
            if required.marker is not None and required.marker.evaluate({"extra": extra}):
                packages.add(canonicalize_name(required.name))
    return brought
