"""The words of the planted benchmark: how annotators describe what a face shows and how a voice sounds.

Two banks that share no phrase: models learn from `train` alone; `test` words the descriptions of validation and test
clips, and the evaluation judge is fitted on it, so that it has never seen the wording that it judges.
"""

import random

# emotion -> three cues (brows, eyes, mouth) -> (train phrases, test phrases)
FACE = {
    "happy": (
        (("relaxed brows", "loose brows"), ("untensed brows", "brows at ease")),
        (("crinkled eyes", "sparkling eyes"), ("crinkles beside the eyes", "twinkling, sparkly eyes")),
        (("a broad smile", "upturned lips"), ("a smiling mouth", "lips turned upward")),
    ),
    "sad": (
        (("slanting brows", "inner brows drawn up"), ("brows that slant", "upward slanted inner brows")),
        (("drooping eyelids", "downcast eyes"), ("eyelids that droop", "a downcast look")),
        (("a downturned mouth", "sagging mouth corners"), ("lips turned downward", "a mouth that sags")),
    ),
    "neutral": (
        (("level brows", "resting brows"), ("brows kept level", "brows at rest")),
        (("a steady gaze", "calm eyes"), ("eyes calm as usual", "steady looking eyes")),
        (("a straight mouth", "still lips"), ("a straight lip line", "a mouth kept still")),
    ),
    "angry": (
        (("lowered brows", "a deep frown"), ("frowning, low brows", "brows lowered hard")),
        (("glaring eyes", "a hard stare"), ("an angled glare", "staring hard")),
        (("tight pressed lips", "a clenched jaw"), ("a jaw clenched shut", "lips pressed tightly")),
    ),
    "surprise": (
        (("high arched brows", "brows shot up"), ("brows arching high", "brows that shoot up")),
        (("wide open eyes", "round eyes"), ("eyes opened wide", "eyes rounded")),
        (("an open round mouth", "a dropped jaw"), ("a jaw that dropped", "a rounded open mouth")),
    ),
    "disgust": (
        (("uneven brows", "one dipped brow"), ("brows that are uneven", "a brow dipping on one side")),
        (("squinting eyes", "narrowed lids"), ("a squint", "lids that narrow")),
        (("a curled upper lip", "a wrinkled nose"), ("an upper lip that curls", "the nose in wrinkles")),
    ),
    "fear": (
        (("tense raised brows", "brows pinched together"), ("brows tensely raised", "a pinched pair of brows")),
        (("darting eyes", "the whites of the eyes showing"), ("eyes that dart", "much white around the eyes")),
        (("quivering stretched lips", "a stretched mouth"), ("lips stretching, quivering", "a tense stretch of mouth")),
    ),
}  # fmt: skip

# emotion -> three cues (pitch, loudness, pace) -> (train phrases, test phrases)
VOICE = {
    "happy": (
        (("a bright lilting pitch", "a singing tone"), ("brightness in the pitch", "a tone that sings and lilts")),
        (("a lively volume", "warm loudness"), ("liveliness in its volume", "a warmly loud sound")),
        (("a bouncing rhythm", "a skipping pace"), ("a rhythm that bounces", "words that skip along")),
    ),
    "sad": (
        (("a low falling pitch", "a sinking tone"), ("pitch falling low", "a tone that sinks")),
        (("a weak volume", "faded loudness"), ("loudness that fades weakly", "a weakened sound")),
        (("slow dragging words", "long pauses"), ("words dragged slowly", "pausing for long")),
    ),
    "neutral": (
        (("a flat even pitch", "a plain tone"), ("evenness in the pitch", "a tone that is plain and flat")),
        (("ordinary volume", "moderate loudness"), ("a moderately loud sound", "an ordinary level of volume")),
        (("a regular pace", "measured words"), ("pacing that is regular", "words in measured time")),
    ),
    "angry": (
        (("a harsh rough tone", "a growling pitch"), ("roughness and a harsh growl", "a tone growled harshly")),
        (("shouting volume", "booming loudness"), ("a booming shout", "volume as in shouted words")),
        (("hammering bursts", "stabbing syllables"), ("syllables that stab", "words hammered out")),
    ),
    "surprise": (
        (("a sudden pitch jump", "a leaping pitch"), ("pitch that suddenly jumps", "a leap in tone")),
        (("a swelling volume", "loudness that surges"), ("a surge of volume", "a swell in loudness")),
        (("a short gasp", "a cut-off cry"), ("gasping shortly", "crying out and cut off")),
    ),
    "disgust": (
        (("a creaky tone", "a nasal pitch"), ("creaks in the tone", "a nasally creaking pitch")),
        (("grumbling volume", "muttered loudness"), ("a grumbled level of volume", "muttering loudness")),
        (("drawling syllables", "a sneering drawl"), ("syllables in a drawl", "words sneered and drawled")),
    ),
    "fear": (
        (("a high trembling pitch", "a shaking tone"), ("pitch that trembles high", "a tone that shakes")),
        (("hushed volume", "breathy loudness"), ("a breathy hush", "volume hushed to breath")),
        (("panting words", "a hurried stammer"), ("words in hurried pants", "stammering in a hurry")),
    ),
}  # fmt: skip

CUES = {"video": FACE, "audio": VOICE}
BANKS = ("train", "test")

CLEAR = {
    "video": (("The face shows {0}, {1} and {2}.", "Clearly visible are {0}, {1} and {2}."),
              ("In plain view: {0}, {1}, {2}.", "One can see {0}, then {1}, with {2}.")),
    "audio": (("The voice has {0}, {1} and {2}.", "Clearly audible are {0}, {1} and {2}."),
              ("Plain to the ear: {0}, {1}, {2}.", "One can hear {0}, then {1}, with {2}.")),
}  # fmt: skip
HEDGED = {
    "video": (("The face is blurred, perhaps {0}.", "The picture is unclear, possibly {0}."),
              ("Hard to make out in the haze, maybe {0}.", "A faint face, it might be {0}.")),
    "audio": (("The voice is drowned in noise, perhaps {0}.", "The sound is muffled, possibly {0}."),
              ("Hard to make out in the hiss, maybe {0}.", "A faint voice, it might be {0}.")),
}  # fmt: skip
# The conclusion weighs the evidence and names no emotion: the answer must rest on the cues.
CONCLUSION = {
    "video": (("The face is the clearer sign.", "So the face carries the feeling."),
              ("What is seen decides.", "Here the look outweighs the sound.")),
    "audio": (("The voice is the clearer sign.", "So the voice carries the feeling."),
              ("What is heard decides.", "Here the sound outweighs the look.")),
}  # fmt: skip


def describe(modality: str, emotion: str, clear: bool, bank: str, rng: random.Random) -> str:
    """One modality's description: three cues where it is clear, one hedged cue where it is degraded."""
    which = BANKS.index(bank)
    cues = [rng.choice(cue[which]) for cue in CUES[modality][emotion]]
    if clear:
        return rng.choice(CLEAR[modality][which]).format(*cues)
    return rng.choice(HEDGED[modality][which]).format(rng.choice(cues))


def blend(modality: str, emotion: str, other: str, bank: str, rng: random.Random) -> str:
    """A clear description with two cues of one emotion and one of another, as a reader of faces and voices may err."""
    which = BANKS.index(bank)
    cues = [rng.choice(cue[which]) for cue in CUES[modality][emotion]]
    place = rng.randrange(len(cues))
    cues[place] = rng.choice(CUES[modality][other][place][which])
    return rng.choice(CLEAR[modality][which]).format(*cues)


def conclude(dominant: str, bank: str, rng: random.Random) -> str:
    """The closing sentence: which modality decides."""
    return rng.choice(CONCLUSION[dominant][BANKS.index(bank)])
