"""`models.config`, a text ModelServerConfig: what the servers load of each model, and the labels that they answer to.

It is the only place where labels and rollbacks stand, so one rename changes what everybody is served. What a
ModelServerConfig has no field for is a comment in its first lines: `# rolled back: NAME 3`, and `# root: /models` where
base paths are those of another place than the store's, such as that of its mount in a container.

Which versions the servers load: the newest. With labels also the labelled ones and the one before the newest, because
TensorFlow Serving moves a label only to a version that it has loaded. After a rollback no version above its target, as
both servers answer with the highest that is loaded; the next publish ends the rollback. A version that is named and not
there yet is one that is about to be published.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bookserve.export.errors import StoreError

LABELS = "labels.json"  # in a model's folder: where stores of before had labels and rollback
_ROOT = re.compile(r"^# root: (/.*|[a-z][a-z0-9]*://.+)$", re.MULTILINE)
_ROLLED_BACK = re.compile(r"^# rolled back: (\S+) ([1-9][0-9]*)$", re.MULTILINE)


@dataclass(frozen=True)
class Release:
    """What a model's users get: `labels` names versions; `rolled_back_to` is served instead of the newest, if set."""

    labels: Mapping[str, int] = field(default_factory=dict)
    rolled_back_to: int | None = None


@dataclass(frozen=True)
class Entry:
    """What `models.config` has of one model. `loads` are the versions that its policy names, None for all; `newest` how
    many of the newest versions it loads."""

    base_path: str
    release: Release
    loads: frozenset[int] | None = frozenset()
    newest: int = 1

    def loaded(self, versions: Sequence[int]) -> set[int]:
        """Those of a model's versions, ascending, that the servers load."""
        if self.loads is None:
            return set(versions)
        return set(self.loads.intersection(versions)) if self.loads else set(versions[-self.newest :])


def read(path: Path) -> dict[str, Entry]:
    """Model -> its entry; nothing where there is no file.

    Raises:
        StoreError: the file cannot be read.
    """
    from google.protobuf import text_format

    from bookserve.serving.wire.tensorflow_serving_pb2 import ModelServerConfig

    try:
        text = path.read_text(encoding="utf-8")
        config = text_format.Parse(text, ModelServerConfig())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, text_format.ParseError) as error:
        raise StoreError(f"{path} cannot be read ({error}): fix it, or delete it and set the labels again") from error
    rolled_back = {model: int(version) for model, version in _ROLLED_BACK.findall(text)}
    entries = {}
    for model in config.model_config_list.config:
        policy = model.model_version_policy
        release = Release(dict(sorted(model.version_labels.items())), rolled_back.get(model.name))
        loads = None if policy.HasField("all") else frozenset(policy.specific.versions)
        entries[model.name] = Entry(model.base_path, release, loads, policy.latest.num_versions or 1)
    return entries


def check_root(root: str) -> str:
    """A root for base paths, without a slash at its end.

    Raises:
        StoreError: it is neither an absolute path nor the address of a bucket.
    """
    named = root.rstrip("/") or root
    if not _ROOT.fullmatch(f"# root: {named}"):
        raise StoreError(
            "a server takes base paths as they are, so the root must be an absolute path, such as /models, or the"
            f" address of a bucket: {root!r} is neither"
        )
    return named


def root(path: Path) -> str | None:
    """What the base paths in the file begin with, where that is another place than the file's folder.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        found = _ROOT.search(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}): fix it, or delete it and set the labels again") from error
    return found and found[1]


def read_labels(path: Path) -> Release:
    """The release in a `labels.json`, which stores of before have.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        labels, pinned = dict(content["labels"]), content["rolled_back_to"]
        if not all(isinstance(version, int) for version in (*labels.values(), pinned or 0)):
            raise ValueError("a version is no number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} cannot be read ({error}): fix it, or delete it and set the labels again") from error
    return Release(dict(sorted(labels.items())), pinned)


def text(folder: Path, root: str | None, models: Iterable[tuple[str, Release, Sequence[int]]]) -> str:
    """The file's text for models, each with its release and the versions to name; none means the newest.

    Base paths begin with `root`, and with the store's `folder` where that is None.

    Raises:
        StoreError: the path is not UTF-8.
    """
    from google.protobuf import text_format

    from bookserve.serving.wire.tensorflow_serving_pb2 import ModelServerConfig

    config = ModelServerConfig()
    config.model_config_list.SetInParent()
    place, comments = (str(folder), "") if root is None else (root, f"# root: {root}\n")
    for model, release, loaded in models:
        try:
            entry = config.model_config_list.config.add(
                name=model, base_path=f"{place.rstrip('/')}/{model}", model_platform="tensorflow"
            )
        except UnicodeEncodeError as error:
            raise StoreError(f"{place} is not a path in UTF-8, which protobuf's texts are") from error
        if loaded:
            entry.model_version_policy.specific.versions.extend(loaded)
        entry.version_labels.update(release.labels)
        if release.rolled_back_to is not None:
            comments += f"# rolled back: {model} {release.rolled_back_to}\n"
    return comments + str(text_format.MessageToString(config, as_utf8=False))


def loaded(release: Release, versions: Sequence[int]) -> list[int]:
    """The versions to name in the version policy, ascending; empty where the servers' own policy, the newest, is meant.

    See the module's docstring. Without labels and rollback nothing is named, so that a server finds a new version by
    itself, without a look at `models.config`.
    """
    if not release.labels and release.rolled_back_to is None:
        return []
    newest = versions[-2:] if release.rolled_back_to is None else [release.rolled_back_to]
    return sorted({*release.labels.values(), *newest})
