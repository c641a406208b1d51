"""What preparing has seen of a data set: a text, and one HTML page with the pictures one should look at."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageStat
from torch import Tensor

from ldm.data.findings import NO_CAPTION, UNLABELLED, Finding, looks_unlabelled
from ldm.data.images import PictureFacts
from ldm.data.record import Record
from ldm.data.sources.source import Source

TEXT, PAGE = "report.txt", "report.html"
NAMED = 10  # of what could not be read, in the text; the page names all
EXTREMES, THUMBNAIL = 6, 96  # pictures shown of a kind, and their side
NEAR = 6  # of 128 bits of two pictures' fingerprints may differ
STEP = 4  # levels of 255 that brightness must grow by: compression makes smaller ones
TWELVE_BITS = 4095  # what many cameras and scanners give in 16


@dataclass(order=True)
class _Seen:
    """A picture that may be shown."""

    value: float
    name: str
    thumbnail: bytes = field(compare=False)  # levels, RGB, of THUMBNAIL x THUMBNAIL


@dataclass
class Report:
    """
    Attributes:
        counts: pictures by split, as written.
        unreadable: what could not be read, and why.
        findings: what their owner may not expect.
    """

    counts: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    captions: list[int] = field(default_factory=list)  # words of each
    map_classes: Counter[int] = field(default_factory=Counter)  # pictures that each class is in
    with_255: list[str] = field(default_factory=list)  # maps
    transparent: int = 0
    profiles: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # pictures by the name of their colour profile
    deep: list[tuple[str, float]] = field(default_factory=list)  # of 16 bits: (name, largest number)
    doubts: list[str] = field(default_factory=list)  # of masks
    paged: list[str] = field(default_factory=list)
    all_pages: bool = False  # whether each page became a record
    silent: list[str] = field(default_factory=list)  # without a caption
    _identical: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))  # by checksum: (name, split)
    _fingerprints: list[int] = field(default_factory=list)
    _names: list[tuple[str, str]] = field(default_factory=list)  # (name, split) of each fingerprint
    _extremes: dict[str, list[_Seen]] = field(default_factory=lambda: defaultdict(list))

    @staticmethod
    def of(sources: Mapping[str, Source], all_pages: bool = False) -> Report:
        """What is known before any record is read."""
        findings = dict.fromkeys(finding for source in sources.values() for finding in source.findings)
        unreadable = [reason for source in sources.values() for reason in source.unreadable.values()]
        return Report(findings=list(findings), unreadable=unreadable, all_pages=all_pages)

    def join(self, part: Report) -> None:
        """Adds what another process has seen, of the records behind those seen before."""
        self.unreadable += part.unreadable
        self.kinds += part.kinds
        self.sizes += part.sizes
        self.map_classes += part.map_classes
        self.with_255 += part.with_255
        self.transparent += part.transparent
        self.deep += part.deep
        self.doubts += part.doubts
        self.paged += part.paged
        for profile, names in part.profiles.items():
            self.profiles[profile] += names
        for kind, seen in part._extremes.items():
            self._extremes[kind] = sorted([*self._extremes[kind], *seen])[:EXTREMES]

    def plain(self, put: Callable[[bytes], int]) -> dict[str, Any]:
        """What was seen, for JSON; bytes are put elsewhere, and are as many here. See `join`."""
        extremes = {kind: [(one.value, one.name, put(one.thumbnail)) for one in seen] for kind, seen in self._extremes.items()}
        names = ("unreadable", "kinds", "sizes", "with_255", "transparent", "deep", "doubts", "paged", "profiles")
        classes = list(self.map_classes.items())
        return {name: getattr(self, name) for name in names} | {"map_classes": classes, "extremes": extremes}

    @staticmethod
    def of_plain(plain: Mapping[str, Any], take: Callable[[int], bytes]) -> Report:
        """The inverse of `plain`."""
        report = Report(
            unreadable=plain["unreadable"],
            kinds=Counter(plain["kinds"]),
            sizes=[(width, height) for width, height in plain["sizes"]],
            map_classes=Counter(dict(plain["map_classes"])),
            with_255=plain["with_255"],
            transparent=plain["transparent"],
            profiles=defaultdict(list, plain["profiles"]),
            deep=[(name, most) for name, most in plain["deep"]],
            doubts=plain["doubts"],
            paged=plain["paged"],
        )
        for kind, seen in plain["extremes"].items():
            report._extremes[kind] = [_Seen(value, name, take(size)) for value, name, size in seen]
        return report

    def see_image(self, record: Record, image: Image.Image, facts: PictureFacts) -> int:
        """A picture, upright and in 8 bits, and what its file is; returns its fingerprint."""
        self.kinds[f"{facts.format} {facts.mode}"] += 1
        self.transparent += facts.has_alpha
        if facts.profile not in ("", "sRGB"):
            self.profiles[facts.profile].append(record.name)
        if facts.mode.startswith("I;16") and facts.span is not None:
            self.deep.append((record.name, facts.span[1]))
        self.sizes.append(image.size)
        if image.mode in ("LA", "RGBA"):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=2.0)
        brightness = ImageStat.Stat(small.convert("L")).mean[0]
        for kind, value in (("darkest", brightness), ("brightest", -brightness), ("smallest", float(min(image.size)))):
            kept = self._extremes[kind]
            if len(kept) < EXTREMES or (value, record.name) < (kept[-1].value, kept[-1].name):
                kept.append(_Seen(value, record.name, small.tobytes()))
                self._extremes[kind] = sorted(kept)[:EXTREMES]
        return fingerprint(image)

    def see_mask(self, record: Record, doubt: str) -> None:
        """What is doubtful about a mask; "" = nothing."""
        if doubt:
            self.doubts.append(f"{record.name} {doubt}")

    def see_pages(self, record: Record, count: int) -> None:
        """How many pages or frames a picture has."""
        if count > 1:
            self.paged.append(f"{record.name} ({count})")

    def see_array(self, record: Record, array: Tensor) -> None:
        """An array, (C, H, W)."""
        self.kinds[f"npy of {len(array)} channels"] += 1
        self.sizes.append((array.shape[2], array.shape[1]))

    def see_map(self, record: Record, classes: Tensor) -> None:
        """A map, (H, W)."""
        there = classes.unique().tolist()
        self.map_classes.update(there)
        if 255 in there:
            self.with_255.append(record.name)

    def add(self, split: str, record: Record, digest: str, fingerprint: int | None) -> None:
        """A record that was read, by its picture's checksum and fingerprint; arrays have none."""
        self._identical[digest].append((record.name, split))
        if fingerprint is not None and len(self._identical[digest]) == 1:
            self._fingerprints.append(fingerprint)
            self._names.append((record.name, split))
        if record.label is not None:
            self.labels[str(record.label)] += 1
        self.captions += [len(caption.split()) for caption in record.captions]
        if not record.captions:
            self.silent.append(record.name)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def all_findings(self) -> list[Finding]:
        """Those of the source, and what all records together show."""
        found = [finding for finding in self.findings if finding.what != NO_CAPTION]  # counted anew, of what was read
        if self.silent and self.captions:
            found.append(Finding(NO_CAPTION, tuple(self.silent)))
        if looks_unlabelled(self.map_classes):
            found.append(Finding(UNLABELLED, tuple(self.with_255)))
        found += self._of_files()
        found += self._duplicates()
        return found

    def _of_files(self) -> Iterator[Finding]:
        for profile, names in sorted(self.profiles.items()):
            became = "ignored" if profile == "damaged" else "converted to sRGB"
            yield Finding(f"pictures whose colour profile is {profile}, {became}", tuple(names))
        if self.deep and max(most for _, most in self.deep) <= TWELVE_BITS:
            what = f"pictures of 16 bits, none of which leaves 0 ... {TWELVE_BITS:,}: set data.levels=[0, {TWELVE_BITS}]"
            yield Finding(what, tuple(name for name, _ in self.deep))
        if self.doubts:
            yield Finding("masks that may not be what was meant", tuple(self.doubts))
        if self.paged:
            taken = "each page taken" if self.all_pages else "the first taken (--pages all takes each)"
            yield Finding(f"pictures of several pages or frames, {taken}", tuple(self.paged))

    def _duplicates(self) -> Iterator[Finding]:
        groups = [group for group in self._identical.values() if len(group) > 1]
        if groups:
            yield Finding("groups of identical pictures", tuple(" = ".join(name for name, _ in group) for group in groups))
        across = [group for group in groups if len({split for _, split in group}) > 1]
        if across:
            yield Finding(
                "identical pictures in train and val", tuple(" = ".join(f"{name} ({split})" for name, split in group) for group in across)
            )
        near = [(self._names[a], self._names[b]) for a, b in near_pairs(self._fingerprints)]
        if near:
            yield Finding("pairs of pictures that look almost the same", tuple(f"{a} ~ {b}" for (a, _), (b, _) in near))
        across_near = [(a, b) for a, b in near if a[1] != b[1]]
        if across_near:
            yield Finding("pairs that look almost the same in train and val", tuple(f"{a} ~ {b}" for (a, _), (b, _) in across_near))

    def rows(self) -> Iterator[tuple[str, str]]:
        """(what, how much) of the statistics."""
        yield "pictures", ", ".join(f"{count} {split}" for split, count in self.counts.items())
        yield "kinds", ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        if self.transparent:
            yield "with transparency", f"{self.transparent}"
        if self.sizes:
            shorter = sorted(min(size) for size in self.sizes)
            aspects = sorted(width / height for width, height in self.sizes)
            yield "shorter side", f"{shorter[0]} to {shorter[-1]} pixels, median {shorter[len(shorter) // 2]}"
            yield "width / height", f"{aspects[0]:.2f} to {aspects[-1]:.2f}, median {aspects[len(aspects) // 2]:.2f}"
        if self.captions:
            words = sorted(self.captions)
            yield "captions", f"{len(words)}, {words[0]} to {words[-1]} words, median {words[len(words) // 2]}"
        if self.labels:
            yield "classes", f"{len(self.labels)}: " + _counted(self.labels)
        if self.map_classes:
            yield "map classes", _counted(Counter({f"{index}": count for index, count in sorted(self.map_classes.items())}))

    def lines(self, most: int = NAMED) -> list[str]:
        """As a text."""
        lines = [f"{what}: {value}" for what, value in self.rows()]
        lines += [finding.line() for finding in self.all_findings()]
        if self.unreadable:
            lines.append(f"could not be read and were left out: {len(self.unreadable)}")
            lines += [f"  {reason}" for reason in self.unreadable[:most]]
            if len(self.unreadable) > most:
                lines.append(f"  and {len(self.unreadable) - most} more, in {PAGE}")
        return lines

    def files(self) -> dict[str, str]:
        """Name and content of both files."""
        return {TEXT: "\n".join(self.lines()) + "\n", PAGE: self._page()}

    def _page(self) -> str:
        table = "".join(f"<tr><th>{html.escape(what)}</th><td>{html.escape(value)}</td></tr>" for what, value in self.rows())
        findings = "".join(_details(finding.what, finding.names) for finding in self.all_findings())
        if self.unreadable:
            findings += _details("could not be read and were left out", tuple(self.unreadable))
        shown = "".join(
            f"<h2>{kind.capitalize()}</h2><div class=row>" + "".join(map(_figure, seen)) + "</div>" for kind, seen in self._extremes.items()
        )
        return PAGE_FORM.format(table=table, findings=findings or "<p>Nothing that looks odd.</p>", shown=shown)


PAGE_FORM = """<!doctype html><meta charset=utf-8><meta name=viewport content="width=device-width"><title>Data report</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff; }}
th {{ text-align: left; vertical-align: top; padding-right: 1.5rem; font-weight: 600; white-space: nowrap; }}
td {{ overflow-wrap: anywhere; }} table {{ border-spacing: 0 .3rem; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
details {{ margin: .3rem 0; }} summary {{ cursor: pointer; }} ul {{ margin: .3rem 0; color: #555; overflow-wrap: anywhere; }}
.row {{ display: flex; flex-wrap: wrap; gap: 1rem; }} figure {{ margin: 0; width: 96px; }}
figcaption {{ color: #666; font-size: .75rem; overflow-wrap: anywhere; }} img {{ width: 96px; height: 96px; border: 1px solid #ddd; }}
</style>
<h1>Data report</h1>
<table>{table}</table>
<h2>To look at</h2>
{findings}
{shown}
"""


def _details(what: str, names: Sequence[str]) -> str:
    if not names:
        return f"<p>{html.escape(what)}</p>"
    listed = "".join(f"<li>{html.escape(name)}</li>" for name in names)
    return f"<details><summary>{html.escape(what)}: <b>{len(names)}</b></summary><ul>{listed}</ul></details>"


def _figure(seen: _Seen) -> str:
    data = base64.b64encode(_webp(Image.frombytes("RGB", (THUMBNAIL, THUMBNAIL), seen.thumbnail))).decode()
    name = html.escape(Path(seen.name).name)
    return (
        f'<figure><img src="data:image/webp;base64,{data}" alt=""><figcaption title="{html.escape(seen.name)}">{name}</figcaption></figure>'
    )


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def _counted(counts: Counter[str], most: int = 20) -> str:
    more = f", and {len(counts) - most} more" if len(counts) > most else ""
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common(most)) + more


def fingerprint(image: Image.Image) -> int:
    """128 bits of a picture that scaling and recompression hardly change.

    They say whether brightness grows to the right, and downwards, on a grid of 9 x 9 (the difference hash of N. Krawetz, both ways).
    """
    levels = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX)).astype(np.int16)
    bits = np.concatenate([(levels[:8, 1:] > levels[:8, :-1] + STEP).ravel(), (levels[1:, :8] > levels[:-1, :8] + STEP).ravel()])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(fingerprints: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs that differ in at most NEAR bits.

    Two of these have at least one of NEAR + 1 parts of their bits in common, so only such pairs are compared. A flat picture has no
    fingerprint, and a part that many share tells nothing.
    """
    width = -(-128 // (NEAR + 1))
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, bits in enumerate(fingerprints):
        if 16 <= bits.bit_count():
            for part in range(NEAR + 1):
                alike[part, bits >> part * width & (1 << width) - 1].append(number)
    found = {
        pair
        for numbers in alike.values()
        if len(numbers) <= 200
        for pair in combinations(numbers, 2)
        if (fingerprints[pair[0]] ^ fingerprints[pair[1]]).bit_count() <= NEAR
    }
    return sorted(found)
