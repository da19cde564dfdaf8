"""Python and what it needs of this system, as a root file system of its own: `python3 root.py ROOT PACKAGES…`.

The images of the servers begin with ROOT instead of the whole base image: the interpreter and its standard library, the
shared libraries that they and the extension modules in the folders PACKAGES ask for, certificates, time zones and the
names of two users. So there is no shell, and no package manager; what Debian's packages the libraries are of stands in
/var/lib/dpkg/status.d, where scanners look. It needs `ldd` and `ldconfig`, and ends with 1 when a library is missing.
"""

import compileall
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

# Of the standard library: tests, tools and windows, and what installs packages
UNUSED = shutil.ignore_patterns(
    *("test", "tests", "idlelib", "turtledemo", "tkinter", "ensurepip", "lib2to3", "pydoc_data", "config-*", "*.a"),
    *("site-packages", "dist-packages", "__pycache__", "sitecustomize.py"),
)
# Which the C library opens by their names while it runs
OPENED = (
    *("libanl.so.1", "libdl.so.2", "libgcc_s.so.1", "libnss_dns.so.2", "libnss_files.so.2", "libpthread.so.0"),
    *("libresolv.so.2", "librt.so.1", "libutil.so.1"),
)
FILES = (
    *("etc/debian_version", "etc/ld.so.conf", "etc/ld.so.conf.d", "etc/localtime", "etc/os-release"),
    *("etc/ssl/certs/ca-certificates.crt", "etc/ssl/openssl.cnf", "usr/lib/ssl/cert.pem", "usr/lib/ssl/openssl.cnf"),
)
LINKED = ("bin", "lib", "lib64", "sbin")  # to their namesakes in /usr
USERS = "root:x:0:0:root:/:/usr/sbin/nologin\nbookserve:x:10001:10001::/tmp:/usr/sbin/nologin\n"
GROUPS = "root:x:0:\nbookserve:x:10001:\n"


def main() -> None:
    """Fills ROOT."""
    root, packages = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    for name in ("etc", "proc", "sys", "dev", "run", "usr", "var/tmp", "tmp"):
        (root / name).mkdir(parents=True)
    for name in ("var/tmp", "tmp"):
        (root / name).chmod(0o1777)
    for name in LINKED:
        if Path("/", name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    interpreter = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    status = root / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    shutil.copytree(library, root / library.relative_to("/"), ignore=UNUSED)
    compileall.compile_dir(root / library.relative_to("/"), quiet=2, stripdir=str(root))
    for path in {interpreter} | _libraries([interpreter, *_modules(root / library.relative_to("/"))], packages):
        _copy(path, root)
        if package := _package(path):
            told = subprocess.run(
                ["dpkg-query", "--status", package], capture_output=True, text=True, check=True
            ).stdout
            (status / package.partition(":")[0]).write_text(told)
    for name in {"python", "python3", Path(sys.executable).name} - {interpreter.name}:
        (root / interpreter.relative_to("/")).with_name(name).symlink_to(interpreter.name)
    for name in FILES:
        if Path("/", name).exists():
            _copy(Path("/", name), root)
    shutil.copytree("/usr/share/zoneinfo", root / "usr/share/zoneinfo", symlinks=True, ignore=_doubles)
    (root / "etc/passwd").write_text(USERS)
    (root / "etc/group").write_text(GROUPS)
    subprocess.run(["ldconfig", "-X", "-r", root], check=True)
    shutil.rmtree(root / "var/cache", ignore_errors=True)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sys.stdout.write(f"{root}: {size / 1e6:.0f} MB\n")


def _modules(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.so*") if path.is_file()]


def _libraries(programs: Iterable[Path], packages: Iterable[Path]) -> set[Path]:
    """The system's libraries that programs and packages need, by the places where the loader looks for them."""
    modules = [path for folder in packages for path in _modules(folder)]
    own = {path.name for path in modules}  # a wheel's libraries may find each other by the module that needs them alone
    found: set[Path] = set()
    for program in [*programs, *modules]:
        told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        missing = set(re.findall(r"(\S+) => not found", told)) - own
        if missing:
            sys.exit(f"{program} needs {min(missing)}, which is not there")
        found |= {Path(name) for name in re.findall(r"(/\S+) \(0x", told) if Path(name).name not in own}
    beside = next(path for path in found if path.name == "libc.so.6").parent
    return found | {beside / name for name in OPENED if (beside / name).exists()}


def _package(path: Path) -> str | None:
    """Debian's package of a file, if it is of any; what is in /usr/lib may be listed as in /lib."""
    for name in (str(path.resolve()), str(path.resolve()).removeprefix("/usr")):
        found = subprocess.run(["dpkg-query", "--search", name], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return found.stdout.rpartition(": ")[0]
    return None


def _copy(path: Path, root: Path) -> None:
    """A file or folder, with what it is a link to in its place, at the same place below ROOT."""
    target = root / (path.parent.resolve() / path.name).relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target)
    else:
        shutil.copy2(path, target)


def _doubles(folder: str, names: list[str]) -> set[str]:
    """Time zones with leap seconds, and those of another name."""
    return {"posix", "right"} & set(names)


if __name__ == "__main__":
    main()
