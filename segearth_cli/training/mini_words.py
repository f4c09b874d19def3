"""The words that train the built-in model, and the text tower that learns them.

A class is asked for by one of its names in one of the templates, another every step: what the
images learn is then the class, and not one sentence about it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from segearth_cli.model.clip import modulated_output
from segearth_cli.training.mini_data import Source

log = logging.getLogger(__name__)

CONTEXT_LENGTH = 32  # tokens
WRITTEN_OUT = 1024  # tokens up to which attention is products and a softmax
SENTENCES = 2  # of a word in a step, averaged
START_PROMPTS = 12  # of a name
WORD_BATCH = 192  # sentences

# Names that no image and no text is ever trained with, and the class each is about. The first
# half is part of longer names ("lake water"), the second half of none.
HELD_OUT_NAMES = {
    "roof": "building",
    "lake": "water",
    "street": "road",
    "woodland": "tree",
    "meadow": "grass",
    "motorway": "road",
    "creek": "water",
    "lawn": "grass",
    "skyscraper": "building",
    "shrubs": "vegetation",
}

# Every class is known under several names; the first is the one that is measured.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "background": (
        *("background", "other", "others", "clutter", "everything else", "something else"),
        *("unknown", "anything else", "the rest", "unlabelled", "other things"),
    ),
    "building": (
        *("building", "buildings", "house", "houses", "rooftop", "rooftops", "built-up area"),
        *("tiled roof", "roof of a house", "home", "homes", "hut", "shed", "warehouse", "barn"),
        *("apartment block", "residential building", "office building", "structure", "garage"),
        *("man-made structure", "urban building", "dwelling", "settlement", "roofs"),
    ),
    "road": (
        *("road", "roads", "highway", "asphalt road", "paved road", "streets", "city street"),
        *("street pavement", "asphalt", "tarmac", "lane", "avenue", "paved surface", "pavement"),
        *("carriageway", "track", "dirt road", "path", "roadway", "transport route"),
    ),
    "water": (
        *("water", "river", "sea", "pond", "water body", "open water", "lakes", "lake water"),
        *("rivers", "ocean", "canal", "stream", "reservoir", "pool", "lagoon", "bay", "waters"),
        *("swimming pool", "river or lake", "wetland water", "waterway", "flooded land"),
    ),
    "vegetation": (
        *("vegetation", "green vegetation", "plants", "greenery", "trees and grass", "plant"),
        *("bushes", "park", "garden", "gardens", "green area", "green space", "foliage"),
        *("palm trees", "scrub", "trees", "vegetated area", "trees and bushes"),
    ),
    "land": (
        *("land", "bare land", "sand", "bare soil", "desert", "unpaved land", "barren", "ground"),
        *("barren land", "open land", "unpaved area", "empty land", "terrain", "earth", "soil"),
        *("sand dunes", "dirt", "wasteland", "bareland", "dry land"),
    ),
    "tree": (
        *("tree", "trees", "forest", "wood", "tree cover", "woods", "tree crown", "grove"),
        *("woodland trees", "forested area", "deciduous trees", "tree canopy", "forests"),
    ),
    "grass": (
        *("grass", "grassland", "low vegetation", "grasses", "meadow grass", "green field"),
        *("grassy area", "turf", "pasture", "grass field", "herbs", "sports field"),
    ),
    "cropland": (
        *("cropland", "farmland", "field", "agricultural field", "crops", "agriculture"),
        *("agricultural", "fields", "agricultural land", "farm field", "cultivated land"),
        *("ploughed field", "plantation", "arable field", "crop field", "farm"),
    ),
    "bare ground": (
        *("bare ground", "bare soil", "soil", "sand", "bare land", "dirt", "barren land"),
        *("bareland", "barren", "exposed soil", "earth", "gravel", "construction site"),
    ),
    # EuroSAT, 10 m
    "AnnualCrop": (
        *("annual crop land", "cropland", "arable land", "farmland", "annual crop"),
        *("annual crops", "crop field", "ploughed fields", "agricultural field"),
    ),
    "Forest": ("forest", "trees", "woodland trees", "forests", "dense forest", "wood"),
    "HerbaceousVegetation": (
        *("herbaceous vegetation", "shrubland", "natural grassland", "heath", "herbaceous plants"),
        *("wild grassland", "low vegetation", "scrubland"),
    ),
    "Highway": ("highway", "highway or road", "freeway", "highways", "main road", "expressway"),
    "Industrial": (
        *("industrial area", "industrial buildings", "commercial buildings", "factory"),
        *("industrial", "industrial zone", "factories", "warehouses", "commercial area"),
    ),
    "Pasture": (
        "pasture",
        "pasture land",
        "grassland",
        "pastures",
        "grazing land",
        "green pasture",
    ),
    "PermanentCrop": (
        *("permanent crop land", "orchard", "vineyard", "plantation", "permanent crop"),
        *("permanent crops", "orchards", "vineyards", "olive grove", "fruit trees"),
    ),
    "Residential": (
        *("residential area", "residential buildings", "houses", "town", "suburb", "residential"),
        *("housing", "village", "city", "urban area", "residential houses"),
    ),
    "River": ("river", "stream", "waterway", "canal", "rivers", "river course", "winding river"),
    "SeaLake": (
        *("sea or lake", "sea", "open water", "ocean", "sea or lake water", "lakes", "seawater"),
        *("water", "lake water", "sealake"),
    ),
    # UC Merced, 0.3 m
    "agricultural": (
        *("agricultural field", "farmland", "cropland", "crops", "agricultural", "agriculture"),
        *("agricultural land", "farm field"),
    ),
    "airplane": (
        *("airplane", "airplanes", "aircraft", "parked airplane", "airport apron", "plane"),
        *("planes", "jet", "airport"),
    ),
    "baseballdiamond": ("baseball diamond", "baseball field", "ball field", "baseball diamonds"),
    "beach": ("beach", "sandy beach", "shore", "coast", "beaches", "seaside", "sea shore"),
    "buildings": (
        *("buildings", "large buildings", "commercial buildings", "office buildings"),
        *("building", "city buildings", "office block", "roofs of large buildings"),
    ),
    "chaparral": ("chaparral", "scrub", "bushes on sand", "desert shrubland", "dry bushes"),
    "denseresidential": (
        *("dense residential area", "dense housing", "crowded houses", "dense residential"),
        *("densely built houses", "close houses"),
    ),
    "forest": ("forest", "trees", "woods", "dense trees", "wood", "forests"),
    "freeway": ("freeway", "highway", "expressway", "freeways", "multi-lane road"),
    "golfcourse": ("golf course", "golf green", "fairway", "golf courses", "golf bunker"),
    "harbor": (
        *("harbor", "port", "boats", "ships at a dock", "harbour", "yachts", "dock", "ships"),
        *("boats in a harbor", "jetty"),
    ),
    "intersection": (
        *("road intersection", "crossroads", "street crossing", "junction", "intersection"),
        *("road crossing", "street corner"),
    ),
    "mediumresidential": (
        *("medium residential area", "suburb", "residential neighbourhood"),
        *("medium residential", "houses with gardens", "suburban houses"),
    ),
    "mobilehomepark": (
        *("mobile home park", "trailer park", "mobile homes", "caravans", "trailers"),
        *("mobile home", "rows of trailers"),
    ),
    "overpass": ("overpass", "bridge", "road bridge", "flyover", "overpasses", "viaduct"),
    "parkinglot": (
        *("parking lot", "car park", "parked cars", "cars", "parking lots", "vehicles", "car"),
        *("parking", "parking area"),
    ),
    "river": ("river", "stream", "water", "rivers", "river with banks"),
    "runway": ("runway", "airport runway", "airstrip", "runways", "landing strip"),
    "sparseresidential": (
        *("sparse residential area", "single house with garden", "villa", "sparse residential"),
        *("isolated house", "country house", "lone house"),
    ),
    "storagetanks": (
        *("storage tanks", "oil tanks", "storage tank", "fuel tanks", "store tank", "tanks"),
        *("round tanks", "oil depot"),
    ),
    "tenniscourt": ("tennis court", "tennis courts", "sports court", "court", "tennis"),
}

AERIAL_TEMPLATES = (
    "{}",
    "an aerial image of {}.",
    "a satellite image of {}.",
    "an aerial photo of the {}.",
    "a satellite photo of the {}.",
    "{} seen from above.",
    "a remote sensing image of {}.",
)


@dataclass(frozen=True)
class StepVocabulary:
    """The words of one source in one step, and the word of each of its classes (-1: none)."""

    words: tuple[str, ...]  # keys of SYNONYMS
    word_of_class: tuple[int, ...]


def sampled_vocabulary(source: Source, rng: np.random.Generator) -> StepVocabulary:
    """The words a user might ask this source for: all or a few, and maybe `background`.

    What has no word of its own goes to `background` when there is one, and is ignored otherwise.
    """
    numbers = [n for n in range(len(source.classes)) if n != source.rest]
    word = {n: source.classes[n] for n in numbers}
    for coarse, members in source.groups:
        if rng.random() < 0.3:
            word.update(dict.fromkeys(members, coarse))
    alone = len(numbers) == 1
    if alone or rng.random() < 0.5:
        kept = rng.integers(1, len(numbers)) if not alone else 1
        named = set(rng.permutation(numbers)[:kept].tolist())
        # a coarse word keeps all its members
        names = {word[n] for n in named}
        word = {n: w if w in names else "background" for n, w in word.items()}
        if source.rest is not None:
            word[source.rest] = "background"
    elif source.rest is not None and rng.random() < 0.5:
        word[source.rest] = "background"
    words = list(dict.fromkeys(word.values()))
    if source.negatives and rng.random() < 0.3:
        words.append(str(rng.choice(source.negatives)))
    places = [words.index(word[n]) if n in word else -1 for n in range(len(source.classes))]
    return StepVocabulary(tuple(words), tuple(places))


def phrase(word: str, rng: np.random.Generator) -> str:
    """One of a class's names, the first most often."""
    names = SYNONYMS[word]
    return names[0] if rng.random() < 0.4 else str(rng.choice(names))


def taught_words() -> tuple[str, ...]:
    """Every single word of the names, in alphabetical order."""
    names = (name for synonyms in SYNONYMS.values() for name in synonyms)
    return tuple(sorted({word for name in names for word in name.casefold().split()}))


def prompt(name: str, rng: np.random.Generator) -> str:
    """A sentence about a name: mostly the ImageNet templates, as they are what is run."""
    if rng.random() < 0.25:
        return str(rng.choice(AERIAL_TEMPLATES)).format(name)
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES
    return str(templates[int(rng.integers(len(templates)))](name))


@lru_cache(maxsize=100_000)
def tokens_of(text: str) -> Tensor:
    """Token numbers of a sentence: 32."""
    return word_pieces()([text])[0]


@lru_cache(maxsize=1)
def word_pieces() -> Any:
    """open_clip's tokenizer; reading its table takes tens of milliseconds."""
    return open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)


def sampled_texts(
    model: CLIP, vocabularies: Sequence[Sequence[str]], rng: np.random.Generator
) -> list[Tensor]:
    """Unit text features of each vocabulary, Q D: the mean of two sentences of one name a word."""
    names = [phrase(word, rng) for words in vocabularies for word in words]
    sentences = [prompt(name, rng) for name in names for _ in range(SENTENCES)]
    tokens = torch.stack([tokens_of(sentence) for sentence in sentences])
    features = F.normalize(sentence_features(model, tokens).float(), dim=-1)
    features = F.normalize(features.reshape(len(names), SENTENCES, -1).mean(dim=1), dim=-1)
    ends = np.cumsum([len(words) for words in vocabularies])[:-1].tolist()
    return list(torch.tensor_split(features, ends))


def sentence_features(model: CLIP, tokens: Tensor) -> Tensor:
    """What `encode_text` returns, S D, without the work on the padding: S 32 tokens."""
    ends = tokens.argmax(dim=-1)  # the end token has the highest number
    length = int(ends.max()) + 1
    features = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    heads = partial(attend, mask=model.attn_mask[:length, :length])
    for block in model.transformer.resblocks:
        features = modulated_output(block, features, heads, residual=True)
    features = model.ln_final(features[torch.arange(len(ends)), ends])
    return features @ model.text_projection


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T s) v, per head; `mask` is added to the scores."""
    if mask is None and q.shape[-2] > WRITTEN_OUT:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores if mask is None else scores + mask
    mixed: Tensor = scores.softmax(-1).to(v.dtype) @ v
    return mixed


def text_parameters(model: CLIP) -> list[nn.Parameter]:
    """All that only sentences go through."""
    return [p for n, p in model.named_parameters() if not n.startswith(("visual.", "logit_scale"))]


def learn_words(model: CLIP, steps: int, rng: np.random.Generator) -> None:
    """Teach the text tower alone which names are of one class, before there is any image.

    Otherwise the images are pulled towards another random direction for every name and template.
    Sentences of one class, or with the same name in another class, attract; all others repel.
    """
    start_apart(model, rng)
    text = text_parameters(model)
    optimizer = torch.optim.AdamW(text, lr=1e-3, weight_decay=0.0)
    pairs = [(number, name) for number, names in enumerate(SYNONYMS.values()) for name in names]
    known = sorted({name for _, name in pairs})
    for number in range(steps):
        picks = [pairs[i] for i in rng.integers(len(pairs), size=WORD_BATCH)]
        tokens = torch.stack([tokens_of(prompt(name, rng)) for _, name in picks])
        classes = torch.tensor([c for c, _ in picks])
        names = torch.tensor([known.index(name) for _, name in picks])
        alike = (classes == classes[:, None]) | (names == names[:, None])
        features = F.normalize(sentence_features(model, tokens), dim=-1)
        itself = torch.eye(WORD_BATCH, dtype=torch.bool)
        scores = (20 * features @ features.T).masked_fill(itself, -1e4).log_softmax(dim=-1)
        alike = alike & ~itself
        loss = -(scores * alike).sum() / alike.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if number % 50 == 49:
            log.info("words, step %d: %.3f", number + 1, float(loss.detach()))


@torch.no_grad()
def start_apart(model: CLIP, rng: np.random.Generator) -> None:
    """Words from which the classes differ from the first step on.

    From the usual random weights all sentences have nearly the same feature (the end token's), and
    thousands of steps pass before the words part. So: the end token starts empty and collects its
    sentence, and the projection drops what all names share and what tells the templates apart.
    """
    model.token_embedding.weight[-2:] = 0  # start and end of a sentence
    model.positional_embedding.zero_()
    projection = model.text_projection  # C D
    width = projection.shape[0]
    projection.copy_(torch.eye(*projection.shape))
    names = sorted({name for known in SYNONYMS.values() for name in known})
    sentences = torch.stack(
        [tokens_of(prompt(n, rng)) for n in names for _ in range(START_PROMPTS)]
    )
    features = torch.cat([model.encode_text(part) for part in sentences.split(256)])[:, :width]
    by_name = features.unflatten(0, (len(names), START_PROMPTS))  # names prompts C
    means = by_name.mean(dim=1)
    within = (by_name - means[:, None]).flatten(0, 1)
    covariance = within.T @ within / len(within) + 0.02 * means.var(dim=0).mean() * torch.eye(width)
    variance, directions = torch.linalg.eigh(covariance)
    common = F.normalize(means.mean(dim=0), dim=0)
    whitened = directions / variance.sqrt() @ directions.T  # C C
    whitened = whitened - common[:, None] * (common @ whitened)
    turn = nn.init.orthogonal_(torch.empty(width, projection.shape[1]))
    projection.copy_(whitened @ turn)
