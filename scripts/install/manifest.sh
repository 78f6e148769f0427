# shellcheck shell=bash
# The list of what an installation made, so that --uninstall removes exactly that; install.sh sources it.
#
# Lines of `key<TAB>value`: made-tree (a folder that is ours alone), made-link, made-folder (removed only when empty), and
# what the next run compares: engine-version, engine-backend, engine-source, engine-key, engine-sha256, app-stamp.

manifest_get() {
    [[ -f "$MANIFEST" ]] || return 0
    awk -F '\t' -v key="$1" '$1 == key {print $2}' "$MANIFEST"
}

manifest_put() {
    ((DRY_RUN == 0)) || return 0
    local kept=""
    [[ ! -f "$MANIFEST" ]] || kept=$(awk -F '\t' -v key="$1" '$1 != key' "$MANIFEST")
    printf '%s%s\t%s\n' "${kept:+$kept
}" "$1" "$2" >"$MANIFEST.new"
    mv "$MANIFEST.new" "$MANIFEST"
}

# manifest_add made-tree PATH: like put, but a key may have several values.
manifest_add() {
    ((DRY_RUN == 0)) || return 0
    manifest_get "$1" | grep -qxF "$2" || printf '%s\t%s\n' "$1" "$2" >>"$MANIFEST"
}

# make_folder PATH: with its parents; those that were missing are remembered for record_folders.
make_folder() {
    local missing=$1
    until [[ -d "$missing" ]]; do
        MADE_FOLDERS+=("$missing")
        missing=${missing%/*}
        missing=${missing:-/}
    done
    [[ -d "$1" ]] || run mkdir -p "$1"
}

record_folders() {
    local folder
    for folder in ${MADE_FOLDERS[@]+"${MADE_FOLDERS[@]}"}; do manifest_add made-folder "$folder"; done
}

uninstall() {
    if [[ ! -f "$MANIFEST" ]]; then
        say "nothing to uninstall: there is no $MANIFEST"
        ((PURGE == 0)) || purge_caches
        return
    fi
    local path folders
    while read -r path; do remove_link "$path"; done < <(manifest_get made-link)
    while read -r path; do remove_tree "$path"; done < <(manifest_get made-tree)
    folders=$(manifest_get made-folder | sort -r)
    run rm -f "$MANIFEST"
    while read -r path; do remove_empty_folder "$path"; done <<<"$folders"
    if ((PURGE)); then purge_caches; else say "kept: downloaded models, and what ggufdeploy cached in $CACHE"; fi
    ((DRY_RUN)) || say "ggufdeploy is uninstalled"
}

# Only a link that still leads into our own virtual environment.
remove_link() {
    [[ -L "$1" ]] || return 0
    if [[ "$(readlink "$1")" == "$VENV/"* ]]; then run rm -f "$1"; else warn "$1 leads elsewhere now; it stays"; fi
}

# Only what lies where install.sh makes folders: a damaged manifest must not remove anything else.
remove_tree() {
    [[ -d "$1" ]] || return 0
    if [[ "$1" == "$VENV" || "$1" == "$CACHE/wheels/"?* ]] && [[ "$1" != *..* ]]; then run rm -rf "$1"
    else warn "the manifest names $1, which install.sh does not make; it stays"; fi
}

remove_empty_folder() {
    [[ -d "$1" ]] || return 0
    if ((DRY_RUN)); then say "# if it is empty then:" && print_command rmdir "$1"
    elif [[ -z "$(ls -A "$1")" ]]; then rmdir "$1"; fi
}

purge_caches() {
    local path
    for path in "$CACHE" "$STATE"; do
        if [[ -n "$path" && -d "$path" ]]; then run rm -rf "$path"; fi
    done
    say "kept: your own profiles and settings, and the models in ${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/hub}, which other programs share"
}
