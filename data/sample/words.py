"""The words of the sample corpus: names made from syllables, and plain terms by clinical area.

Nothing that a sentence could be a claim about is real: drugs, genes, species, markers, diseases,
people and places are composed here. What is real is the vocabulary around them (units, designs,
settings, parts of the body). `grammar.py` has the sentences, `study.py` fills them.
"""

import dataclasses
import random

DRUG_ROOTS = [
    "velmo",
    "tasqui",
    "dremu",
    "fexa",
    "lumbri",
    "zarno",
    "quovi",
    "brenta",
    "nolmi",
    "pextu",
    "kovra",
    "wando",
]
DRUG_ENDS = ["zulide", "xorane", "mbrelin", "ruvext", "qualine", "wistrin"]
MARKER_ROOTS = ["mar", "lum", "sev", "hol", "tri", "vas", "ner", "col"]
MARKER_ENDS = ["quilin", "oventin", "usperin", "adrolin"]
GENE_STARTS = ["ZQ", "QX", "XV", "QZ", "VX"]
GENUS = ["Velmorella", "Tarsobacter", "Quendococcus", "Brevolimnia", "Zarnovibrio", "Loquimonas"]
EPITHET = ["tarsensis", "minorata", "velata", "oblonga", "quendii", "pallescens"]
DISEASE_ROOTS = [
    "tarsom",
    "quendr",
    "velsor",
    "brazim",
    "noltav",
    "zerpil",
    "huvam",
    "ostrev",
    "mirqual",
]
SURNAMES = [
    start + end
    for start in [
        "Harvel",
        "Tores",
        "Quem",
        "Brans",
        "Nolde",
        "Varro",
        "Estel",
        "Kivi",
        "Ormes",
        "Dunva",
    ]
    for end in ("ton", "ik", "berg", "ari", "osa", "lund", "mar")
]
GIVEN = [
    "Anna",
    "Jonas",
    "Mira",
    "Tomas",
    "Lea",
    "Viktor",
    "Sara",
    "Emil",
    "Nora",
    "Pavel",
    "Ines",
    "Hugo",
    "Rita",
    "Oskar",
    "Dana",
]
PLACES = (
    "Norvale Estmark Quinbury Tarsholm Velmont Lower%Brask Holmere Ostrel%Bay Zerwick Pellmoor "
    "Dunqual Vastria Kelnor Marrowby West%Tolm Irenford Solmark Ulvestad%Quay"
)
TOWNS = [place.replace("%", " ") for place in PLACES.split()]
TECHNIQUES = [
    f"the {name} {noun}"
    for name in ("Tores", "Quemberg", "Noldeton", "Varrosa")
    for noun in ("approach", "suture", "flap", "repair")
]
PROGRAMMES = (
    "nurse-led telephone follow-up",
    "a bedside checklist",
    "a home exercise booklet",
    "a two-step handover protocol",
    "weekly group education",
    "a structured discharge visit",
    "a reminder letter",
    "early mobilization",
)
TOPICS = (
    "shared decisions",
    "medication rounds",
    "discharge planning",
    "night-time observation",
    "written care plans",
    "remote consultations",
    "handover between shifts",
    "hand hygiene",
)


@dataclasses.dataclass(frozen=True)
class Measure:
    """A continuous outcome: a typical range of its group means, and which end is good."""

    name: str
    unit: str
    low: float
    high: float
    decimals: int
    better: str  # "higher" or "lower"


@dataclasses.dataclass(frozen=True)
class Area:
    """What is said in one clinical field, in words that stay together within an abstract."""

    name: str
    specialty: str
    organ: str
    nouns: tuple[str, ...]  # the second word of a disease
    events: tuple[str, ...]
    measures: tuple[Measure, ...]
    symptoms: tuple[str, ...]
    signs: tuple[str, ...]


AREAS = (
    Area(
        "respiratory",
        "Respiratory Medicine",
        "lung",
        ("bronchitis", "pneumonitis", "airway disease"),
        ("acute exacerbation", "readmission within 30 days", "use of rescue therapy"),
        (
            Measure("six-minute walk distance", "m", 310, 460, 0, "higher"),
            Measure("cough score", "points", 3, 8, 1, "lower"),
        ),
        ("progressive breathlessness", "a dry cough", "noisy breathing at night"),
        ("patchy basal opacities", "a thickened airway wall", "a small pleural effusion"),
    ),
    Area(
        "cardiovascular",
        "Cardiology",
        "heart",
        ("cardiomyopathy", "vasculitis", "valve disease"),
        ("recurrent arrhythmia", "admission for heart symptoms", "vessel reocclusion"),
        (
            Measure("exercise time", "s", 380, 620, 0, "higher"),
            Measure("systolic pressure", "mm Hg", 128, 152, 0, "lower"),
        ),
        ("palpitations", "ankle swelling", "chest discomfort on climbing stairs"),
        ("a dilated ventricle", "a thickened valve leaflet", "a thin pericardial effusion"),
    ),
    Area(
        "renal",
        "Nephrology",
        "kidney",
        ("nephropathy", "nephritis", "tubular disease"),
        ("start of dialysis", "doubling of serum creatinine", "access thrombosis"),
        (
            Measure("filtration rate", "mL/min", 38, 72, 0, "higher"),
            Measure("urinary protein excretion", "g/day", 0.8, 3.2, 1, "lower"),
        ),
        ("foamy urine", "flank pain", "swelling around the eyes"),
        ("enlarged echogenic kidneys", "a cortical scar", "mild hydronephrosis"),
    ),
    Area(
        "skin",
        "Dermatology",
        "skin",
        ("dermatitis", "dermatosis", "ulcer disease"),
        ("wound infection", "relapse within 12 weeks", "graft loss"),
        (
            Measure("itch score", "points", 2, 8, 1, "lower"),
            Measure("healed area", "cm<sup>2</sup>", 6, 19, 1, "higher"),
        ),
        ("an itching rash", "painful plaques", "a slowly growing nodule"),
        ("a sharply bordered plaque", "widespread scaling", "a shallow ulcer"),
    ),
    Area(
        "digestive",
        "Gastroenterology",
        "bowel",
        ("enteritis", "colopathy", "hepatopathy"),
        ("clinical relapse", "need for a second endoscopy", "anastomotic leak"),
        (
            Measure("stool frequency", "per day", 2, 7, 1, "lower"),
            Measure("appetite score", "points", 30, 70, 0, "higher"),
        ),
        ("cramping abdominal pain", "weight loss", "loss of appetite"),
        ("segmental wall thickening", "a narrowed loop", "enlarged mesenteric nodes"),
    ),
    Area(
        "neurological",
        "Neurology",
        "brain",
        ("neuropathy", "encephalopathy", "palsy"),
        ("seizure recurrence", "fall with injury", "new focal deficit"),
        (
            Measure("gait speed", "m/s", 0.7, 1.3, 2, "higher"),
            Measure("pain intensity", "points", 3, 8, 1, "lower"),
        ),
        ("numbness of both feet", "unsteady gait", "episodes of double vision"),
        ("a small hyperintense lesion", "mild cortical thinning", "a thickened nerve root"),
    ),
    Area(
        "musculoskeletal",
        "Joint and Bone Surgery",
        "bone",
        ("arthritis", "tendinopathy", "osteopathy"),
        ("revision surgery", "non-union at six months", "joint infection"),
        (
            Measure("knee flexion", "degrees", 88, 126, 0, "higher"),
            Measure("morning stiffness", "min", 20, 75, 0, "lower"),
        ),
        ("a painful swollen knee", "morning stiffness", "a limping gait"),
        ("marginal erosions", "a joint effusion", "delayed callus formation"),
    ),
    Area(
        "infectious",
        "Infectious Diseases",
        "blood",
        ("fever", "sepsis", "abscess disease"),
        ("recurrent infection", "death within 28 days", "treatment failure"),
        (
            Measure("time to defervescence", "h", 36, 96, 0, "lower"),
            Measure("neutralizing titre", "log units", 1.4, 3.6, 1, "higher"),
        ),
        ("fever with chills", "night sweats", "a tender swollen node"),
        ("a walled-off collection", "an enlarged spleen", "scattered small nodules"),
    ),
    Area(
        "ocular",
        "Ophthalmology",
        "eye",
        ("retinopathy", "keratitis", "uveitis"),
        ("loss of three lines of vision", "repeat injection", "corneal rejection"),
        (
            Measure("letter score", "letters", 48, 74, 0, "higher"),
            Measure("central thickness", "\u03bcm", 270, 420, 0, "lower"),
        ),
        ("blurred vision", "a red painful eye", "floating spots"),
        ("subretinal fluid", "a corneal infiltrate", "pigment clumping"),
    ),
    Area(
        "perinatal",
        "Mother and Child Health",
        "placenta",
        ("placentopathy", "gestosis", "neonatal fever"),
        ("preterm birth", "admission to the neonatal unit", "repeat transfusion"),
        (
            Measure("birth weight", "g", 2750, 3420, 0, "higher"),
            Measure("length of stay", "days", 3, 9, 1, "lower"),
        ),
        ("headache in the third trimester", "reduced fetal movement", "poor feeding"),
        ("a small placenta", "reduced cord flow", "mild fetal growth restriction"),
    ),
)


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """The invented names of a corpus; few enough that each comes back in many abstracts."""

    drugs: tuple[str, ...]
    genes: tuple[str, ...]
    markers: tuple[str, ...]
    species: tuple[str, ...]

    @classmethod
    def draw(cls, rng: random.Random) -> "Lexicon":
        genes = {
            rng.choice(GENE_STARTS) + "".join(rng.sample("BDKLMNRT", 2)) + str(rng.randint(1, 9))
            for _ in range(30)
        }
        return cls(
            drugs=_some(rng, [a + b for a in DRUG_ROOTS for b in DRUG_ENDS], 40),
            genes=tuple(sorted(genes)),
            markers=_some(rng, [a + b for a in MARKER_ROOTS for b in MARKER_ENDS], 16),
            species=_some(rng, [f"<i>{a} {b}</i>" for a in GENUS for b in EPITHET], 16),
        )


def disease(rng: random.Random, area: Area) -> str:
    """For example "tarsomic bronchitis": an invented adjective before a plain noun."""
    return f"{rng.choice(DISEASE_ROOTS)}{rng.choice(('ic', 'oid'))} {rng.choice(area.nouns)}"


def _some(rng: random.Random, words: list[str], count: int) -> tuple[str, ...]:
    return tuple(rng.sample(words, count))
