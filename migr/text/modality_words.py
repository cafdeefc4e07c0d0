"""The words by which `sentences` tells what a sentence is evidence from. Ours; `word*` stands for a beginning.

Shaped on `tests/data/sentences_dev.jsonl` alone; `tests/data/sentences_heldout.jsonl` measures them (docs/targets.md).
"""

import re
from functools import lru_cache

_STRONG = {
    "video": """
        face faces facial eye* brow brows browed lid lids gaze gazes gazing gazed stare stares stared staring glance*
        glancing glare* glaring forehead* mouth* lip lips jaw* chin cheek* nose noses nostril* nasolabial teeth tongue
        tear tears teary tearful* teardrop* wrinkl* dimple* frown* furrow* smil* grin grins grinning grinned smirk*
        pout* grimac* winc* wink* blink* squint* scowl* blush* gape* nod nods nodding nodded shrug* hand hands finger*
        knuckle* fist fists palm palms arm arms elbow* shoulder* chest knee* leg legs foot feet neck head heads hair*
        pupil* complexion posture* gestur* gesticul* body bodily torso limb* muscle* muscular expression*
        expressionless countenance kneel* knelt bow bows bowed bowing hug hugs hugging hugged hugs embrac* kiss*
        crouch* stumbl* slap slaps slapped slapping wave waves waving waved clench* fidget* lean leans leaning leaned
        leant hunch* slump* curl curls curled curling wipe* wiping rub rubs rubbing rubbed dance* dancing wear wears
        wearing wore dressed camera* visible visibly motionless hide hides hiding hid pat pats patting patted grab*
        grip grips gripping gripped pinch* scratch* stroke strokes stroking pale pallid flushed reddened reddish
        bloodshot sweat* perspir* sit sits sitting sat seated stand stands standing stood walk* crawl* lighting
        foreground thigh* temples lap wrist* skin vein veins bloodless beard* mustache moustache makeup photo* profile
        physique stance tiptoe* shiver* tug tugs tugging yawn* closeup tilt* bite bites biting bitten lick* avert*
        peek* peer peers peering clasp* squeez* shudder* sway* stomp* swallow* chew* flinch* recoil* cower* salut* hop
        hops hopping""",
    "audio": """
        voice* vocal* tone tones tonal pitch* loud* volume intonation* inflection* prosod* acoustic* audible audibly
        inaudibl* audio sound sounds sounding sounded soundtrack* hoarse* husk* shrill* rasp* breathy breath breaths
        breathe* breathing breathless* sigh* sob sobs sobbing sobbed gasp* groan* moan* whimper* wail* howl* yell*
        shout* scream* shriek* roar* growl* snarl* whisper* murmur* mutter* mumbl* grumbl* stammer* stutter* giggl*
        chuckl* laugh* snort* sniff* cough* hum hums humming hummed whistl* sing sings singing sang chant* music*
        melod* song* tune tunes piano violin* guitar* noise* noisy silence silent quietly speech* syllab* cadence
        tempo rhythm* pause pauses paused pausing hesitat* accent accents accented articulat* enunciat* pronounces
        pronouncing pronunciation diction timbre monoton* drawl* slur* hear hears heard hearing throat
        footstep* siren* thunder* applau* echo* whin* squeal* bellow* croak* quaver* falsetto baritone decibel*
        microphone* nasal* drum* hiss* honk* explosion* gunshot* undertone* octave* ambient""",
    "text": """
        subtitle* caption* transcri* wording phrase phrases utterance* dialogue* dialog vocabular* verbatim quot*
        tells told telling mentions mentioned mentioning asks asked asking apolog* thanks thanked thanking complain*
        explains explained explaining claims claimed admit admits admitted admitting promises promised threatens
        threatened begs begged begging plead* warns warned insults insulted curses cursed cursing swears swore replies
        replied denies denied denying congratulat* confess* accuses accused accusing announc* declares declared
        reassur* greets greeted greeting* invites invited proposes proposed rhetorical exclamation text texts textual
        inquires inquired enquires confides boasts joked joking praises praised""",
}
# Count only where a sentence has no strong cue: they often stand beside evidence from elsewhere.
_WEAK = {
    "video": """
        video* clip* scene* screen* frame* image* picture* footage shot shots visual* background room rooms street*
        kitchen office hospital restaurant bed bedroom table chair sofa couch desk door window wall floor ground
        ceiling car indoor* outdoor* dim dimly dark run runs running ran turn turns turning turned move* moving
        motion* action* step steps stepping stepped hold holds holding held push* pull* throw* threw drop drops
        dropped dropping pick picks picking point points pointing pointed raise* raising lift* lower* touch* hit hits
        hitting knock* fall falls falling fell lies lying look* see seen sees watch* cry cries crying cried weep* wept
        freez* froze suit dress coat shirt hat glasses jacket uniform* costume* setting environment* surrounding*
        takes crowd* slam* bench park house garden building* refuse* quiver* trembl* hurr* rush* eat* drink* drive*
        driving jump* sneer* write* writing typing reads reading cover covers covering covered press presses pressed
        pressing wrap* spread* approach* collapse* sink sinks sank pound* tap taps tapping open opens opened close
        closes closed serve* cook*""",
    "audio": """
        speak speaks speaking spoke spoken talk talks talking talked pace paced quiet utter utters uttered uttering
        exclaim* emphasi* listen* choked clap* cheer cheers cheered claps recording* rate delivery stressed sarcas*
        bang bangs banging ring rings ringing bark* scold* quarrel* chat chats chatting""",
    "text": """
        say says said saying word words worded sentence* line lines content contents question* conversation* topic*
        literal* verbal* agrees agreed disagree* answers answered answering argu* repeats repeated repeating discuss*
        refers referring express* insist* demands orders language title lyrics joke jokes banter warning* accusation*
        remark* statement* compliment* insult* comment* inquir* reproach* message*""",
}

_PHRASES = (
    (r"\btone of the (?:scene|picture|image|video|screen|frame)", "video"),
    (r"\blook(?:s|ed|ing)? (?:straight|directly|intently|blankly|nervously|sadly|\w+ly )?\s?(?:at|up|down|away|around|"
     r"back|into|over|out|toward|towards|ahead|aside|left|right|sideways|upward|downward|upwards"
     r"|downwards)\b", "video"),
    (r"\bturn(?:s|ed|ing)? (?:around|away|back|his|her|their|to\b|toward|towards|pale|red|white)", "video"),
    (r"\b(?:an?|his|her|their|the) (?:\w+ )?(?:\w+ )?look (?:on|in|of|is|at)\b", "video"),
    (r"\b(?:paces|pacing|paced) (?:up|back|around|the)\b", "video"),
    (r"\bru(?:n|ns|nning|n) (?:away|towards?|across|to|into|out)\b|\bthrow(?:s|ing)? (?:his|her|the|a|an"
     r"|it)\b", "video"),
    (r"\b(?:rais|lower|shak|lift|mov|open|clos)(?:e|es|s|ing|ed) (?:his|her|their|its) (?!own|voice|tone"
     r"|pitch|volume)", "video"),
    (r"\b(?:points?|pointing|pointed) (?:at|a|his|her|the)\b|\bbod(?:y|ily) language\b", "video"),
    (r"\b(?:au|action unit)s? ?\d+", "video"),
    (r"\bclose-? ?up\b|\bon the (?:left|right)\b", "video"),
    (r"\bwe (?:mainly |only |mostly |will |primarily |now )*(?:analy[sz]e|focus on|look at|observe|watch)\b", "video"),
    (r"\bspeak(?:s|ing)?[ -](?:rate|speed|pace|style)\b|\bout loud\b|\bcalls? out\b"
     r"|\bspeed of (?:the )?speech\b", "audio"),
    (r"\b(?:speaks?|speaking|spoke|talks?|talking|talked) (?:very |too |rather |more |so |quite )?"
     r"(?:\w+ly\b|fast|faster|slower|in an? (?!\w+ (?:room|office|street|car)))", "audio"),
    (r"\b(?:speech|spoken|verbal|linguistic|text|semantic|literal) content\b|\bcontent of (?:the |his |her |their )?"
     r"(?:speech|words?|lines?|text|sentence|utterance|dialogue|subtitles?|message|conversation)", "text"),
    (r"\bwhat (?:is|was|he|she|they|the \w+) (?:being )?(?:says?|said|saying|tells?|told)\b", "text"),
    (r"\b(?:speaks?|speaking|spoke|talks?|talking|talked|complains?) (?:\w+ )?(?:of|about)\b", "text"),
    (r"\b(?:says?|said|saying) (?:that|goodbye|hello|yes|no|sorry|nothing|thank|how|what|why|she|he|they"
     r"|it)\b", "text"),
    (r"\bcalls? (?:him|her|them|it|the \w+ \w+|the \w+) (?:an? )?\w+", "text"),
    (r"\b(?:the|his|her|their|these|those|choice of) (?:actual |literal |spoken |very |own )?words? "
     r"(?:are|is|were|was|express|expresses|carry|carries|convey|conveys|hint|hints|show|shows|suggest"
     r"|reveal|_)", "text"),
    (r"\b(?:his|her|their) words\b|\bin words\b", "text"),
)  # fmt: skip
PHRASES = tuple((re.compile(pattern), modality) for pattern, modality in _PHRASES)

# "in the video", "at the beginning of the clip": where something is, not what it is
FRAMES = re.compile(
    r"\b(?:in|of|on|from|at|throughout|during|within|over) (?:the |this |these |his |her |an? )?"
    r"(?:\w+ (?:part|half|end|beginning) of the )?(?:whole |entire |first |last |second |following "
    r"|opening |close-up )?"
    r"(?P<of>videos?|clips?|audios?|audio track|screen|scenes?|frames?|footage|picture|images?|text"
    r"|subtitles?|transcript)"
    r"(?: (?:clues?|cues?|content|part|track|modality))?\b(?!')"
)
IDIOMS = re.compile(
    r"\bon the (?:other|one) hand\b|\bat hand\b|\bhand in hand\b|\bfirst-?hand\b|\bin other words\b|\bthanks to\b"
    r"|\bin the face of\b|\bface to face\b|\bgritted teeth\b|\bby heart\b|\btop of (?:his|her|their) (?:lungs|voice)\b"
    r"|\b(?:can|could|to|able to|hard to|easy to) (?:tell|say)\b|\bthat is to say\b|\bin a (?:word|sense)\b"
    r"|\b(?:this|that|which|it|these) (?:would |could |may |might |also |probably )*(?:explains?|says|tells)\b"
    r"|\baccompan\w+ (?:his|her|their|the) (?:\w+ )?(?:words|speech|voice|tone)\b|\b(?:low|high)-key\b"
    r"|\bexpression of (?:gratitude|thanks|love|regret|will|opinion)\b|\bsilently\b|\btake[sn]? a (?:hard )?look at\b"
    r"|\bhead (?:over|to toe)\b|\b(?:it )?can be (?:seen|heard) that\b|\blet (?:us"
    r"|me) (?:take a )?look at\b|\bpoints? to\b|\bat this point\b|\bstands? (?:out|for|in contrast)\b"
)
_OPENERS = (
    r"overall|therefore|thus|hence|so\b|consequently|accordingly|in (?:conclusion|summary|short|sum|total|view of)",
    r"to (?:conclude|sum up|summari[sz]e)|summing up|summari[sz]ing|taken together|taking|all in all"
    r"|altogether|putting",
    r"all things considered|based on|combin(?:ed|ing)|consider(?:ed|ing)|given|as a result|with all|in light of",
    r"judging (?:by|from) (?:all|everything|both)|from (?:this|these|all|the above|what)|on the whole|by and large",
    r"from [^,]{3,60}, it (?:seems|appears|can be (?:inferred|concluded|deduced))|it (?:can|could|may) be (?:inferred"
    r"|concluded)|(?:we|i|one) (?:can |could |may )?(?:therefore |thus )?(?:infer|conclude)"
    r"|finally, (?:the|this|all|we|i)",
)
_BEFORE = "and |so |but |(?:additionally|also|furthermore|moreover|at the same time|meanwhile|in addition|however),? "
OPENERS = re.compile(rf"\W*(?:{_BEFORE})?(?:{'|'.join(_OPENERS)})\b")
INFERENCE = re.compile(
    r"\b(?:seem(?:s|ed|ing(?:ly)?)?|appears? to|may|might|could|must|would|should|probabl[ey]|likely|perhaps|maybe"
    r"|suggest\w*|indicat\w*|impl(?:y|ies)|infer\w*|conclu\w+|deduc\w+|believ\w+|emotion\w*|mood|feels?"
    r"|feelings?|felt|state of mind"
    r"|attitude|atmosphere|reflect\w*|evidence|clues?|cues?|modalit\w+|interpret\w*|usually|typical\w*"
    r"|answer|label|signs?"
    r"|is (?:very |clearly |probably |certainly |most likely )?(?:angry|sad|happy|afraid|scared|frightened"
    r"|surprised|disgusted"
    r"|neutral|anxious|worried|nervous|disappointed|helpless|contemptuous|furious|annoyed|upset|overjoyed|excited))\b"
)
# "This change suggests that …", "This sentence may be …": what stands behind is inferred, whatever its words
BACK = re.compile(
    r"\W*(?:(?:and|so|therefore|thus|hence|but|however),? )?(?:this|that|these|those|such|it|through this)(?: an?)?"
    r"(?: \w+){0,4}?,? (?:may|might|could|can|would|must|suggests?|indicates?|impl(?:y|ies)|reflects?|means?|makes?"
    r"|shows? that|tells? us|explains?|express(?:es)?|conveys?|carr(?:y|ies)|aligns?|hints? at|seems?|appears?|reveals?"
    r"|(?:is|are) (?:likely|possibly|probably|perhaps|most likely|presumably|typical\w*|usually|often|consistent))\b"
)
# "…, indicating that she has shouted": the evidence stands before
TAIL = re.compile(
    r",? ?\b(?:(?:possibly|probably|perhaps|maybe|seemingly|apparently|presumably) (?!\w+ing\b.{0,12}$)"
    r"|(?:indicating|suggesting|implying|hinting|reflecting|conveying|expressing|revealing|highlighting|signall?ing)\b"
    r"|as (?:if|though)\b|which (?:may|might|could|can|would|often|usually|is (?:likely|often|a)|suggests?"
    r"|indicates?)\b)"
)
# "The woman may be …": a guess about somebody, unless evidence stands in it
GUESS = re.compile(
    r"\W*(?:\w+ ){1,4}?(?:may|might|could|must|probably|(?:is|are|was) (?:very |most )?(?:likely|probably|possibly))\b"
)
SUBJECT = re.compile(r"\W*(?:(?:the|an?|his|her|their|our) )?(?:\w+ )?\Z")
# These weigh the modalities against each other
WEIGHS = re.compile(
    r"\b(?:outweighs?|(?:clearer|clearest|stronger|better) (?:sign|clue|cue)|carr(?:y|ies) the (?:feeling|emotion)"
    r"|(?:seen|heard|said) decides|more (?:telling|reliable|informative|convincing))\b"
)
# With evidence from several modalities these sum up
SUMMARY = re.compile(
    r"\b(?:conclu\w+|infer\w*|deduc\w+|summari\w+|taken together|most likely|modalit\w+|all (?:point"
    r"|suggest|indicate))\b"
)


def _table(words: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Whole words -> modality, beginnings of words -> modality."""
    whole: dict[str, str] = {}
    begin: dict[str, str] = {}
    for modality, listed in words.items():
        for word in listed.split():
            (begin if word.endswith("*") else whole)[word.rstrip("*")] = modality
    return whole, begin


_TABLES = (_table(_STRONG), _table(_WEAK))


@lru_cache(maxsize=100_000)
def cue(word: str) -> tuple[str | None, str | None]:
    """What a word is a plain and a weak cue of, by the whole word or else by its longest listed beginning."""
    lengths = range(min(len(word), 12), 2, -1)
    plain, weak = (
        whole.get(word) or next((begin[word[:n]] for n in lengths if word[:n] in begin), None)
        for whole, begin in _TABLES
    )
    return plain, weak
