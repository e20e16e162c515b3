# ruff: noqa: E501, SIM905 - tables of phrases are kept compact, as one text per table
"""Word pairs, value pools and made-up values.

A value whose md5 ends in a zero (mod 10) is held out: it occurs nowhere in the training text.
"""

from __future__ import annotations

import hashlib
from functools import cache
from random import Random


def is_held_out(text: str) -> bool:
    """Say whether `text` belongs to the evaluation only (one in ten, fixed for ever)."""
    return int(hashlib.md5(text.casefold().encode()).hexdigest(), 16) % 10 == 0  # noqa: S324


def _pairs(text: str) -> list[tuple[str, ...]]:
    return [tuple(item.split(":")) for item in text.split()]


OPPOSITES = _pairs(
    "hot:cold big:small fast:slow light:dark happy:sad old:young good:bad high:low open:closed "
    "full:empty hard:soft loud:quiet rich:poor strong:weak wet:dry clean:dirty early:late "
    "near:far thick:thin wide:narrow deep:shallow sweet:sour true:false right:wrong up:down "
    "left:right in:out on:off day:night summer:winter black:white love:hate begin:end win:lose "
    "buy:sell push:pull come:go give:take laugh:cry remember:forget always:never "
    "inside:outside above:below before:after more:less first:last same:different easy:difficult "
    "heavy:light cheap:expensive alive:dead awake:asleep friend:enemy peace:war north:south "
    "east:west top:bottom success:failure question:answer arrive:leave"
)
# English, Spanish, Chinese
TRANSLATIONS = _pairs(
    "dog:perro:狗 cat:gato:猫 horse:caballo:马 bird:pájaro:鸟 fish:pez:鱼 cow:vaca:牛 pig:cerdo:猪 "
    "sheep:oveja:羊 bear:oso:熊 wolf:lobo:狼 house:casa:房子 door:puerta:门 window:ventana:窗户 "
    "table:mesa:桌子 chair:silla:椅子 bed:cama:床 book:libro:书 pen:pluma:笔 paper:papel:纸 "
    "water:agua:水 bread:pan:面包 milk:leche:牛奶 tea:té:茶 coffee:café:咖啡 rice:arroz:米饭 "
    "egg:huevo:鸡蛋 meat:carne:肉 apple:manzana:苹果 banana:plátano:香蕉 salt:sal:盐 sun:sol:太阳 "
    "moon:luna:月亮 star:estrella:星星 sky:cielo:天空 rain:lluvia:雨 snow:nieve:雪 wind:viento:风 "
    "fire:fuego:火 tree:árbol:树 flower:flor:花 river:río:河 mountain:montaña:山 sea:mar:海 "
    "stone:piedra:石头 hand:mano:手 head:cabeza:头 eye:ojo:眼睛 heart:corazón:心 mother:madre:母亲 "
    "father:padre:父亲 child:niño:孩子 brother:hermano:兄弟 sister:hermana:姐妹 city:ciudad:城市 "
    "street:calle:街道 car:coche:汽车 train:tren:火车 school:escuela:学校 music:música:音乐 "
    "money:dinero:钱 time:tiempo:时间 friend:amigo:朋友 world:mundo:世界 king:rey:国王 queen:reina:女王"
)
CAPITALS = _pairs(
    "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon England:London "
    "Ireland:Dublin Austria:Vienna Switzerland:Bern Belgium:Brussels Poland:Warsaw Sweden:Stockholm "
    "Norway:Oslo Denmark:Copenhagen Finland:Helsinki Greece:Athens Hungary:Budapest Romania:Bucharest "
    "Bulgaria:Sofia Croatia:Zagreb Serbia:Belgrade Ukraine:Kyiv Russia:Moscow Turkey:Ankara "
    "Egypt:Cairo Morocco:Rabat Kenya:Nairobi Nigeria:Abuja Ghana:Accra Senegal:Dakar Ethiopia:Addis "
    "China:Beijing Japan:Tokyo Korea:Seoul Thailand:Bangkok Vietnam:Hanoi Indonesia:Jakarta "
    "Nepal:Kathmandu Mongolia:Ulaanbaatar Iran:Tehran Iraq:Baghdad Syria:Damascus Canada:Ottawa "
    "Cuba:Havana Peru:Lima Chile:Santiago Uruguay:Montevideo Colombia:Bogotá Ecuador:Quito "
    "Venezuela:Caracas Australia:Canberra Iceland:Reykjavik Estonia:Tallinn Latvia:Riga "
    "Lithuania:Vilnius Slovenia:Ljubljana"
)
CAPITALS = [p for p in CAPITALS if p[1] != "Addis"]  # its full name is two words
IS_A = _pairs(
    "dog:animal cat:animal horse:animal cow:animal pig:animal sheep:animal bear:animal wolf:animal "
    "lion:animal tiger:animal mouse:animal rabbit:animal eagle:bird owl:bird sparrow:bird duck:bird "
    "salmon:fish tuna:fish shark:fish apple:fruit banana:fruit pear:fruit grape:fruit cherry:fruit "
    "lemon:fruit carrot:vegetable potato:vegetable onion:vegetable cabbage:vegetable hammer:tool "
    "saw:tool drill:tool screwdriver:tool rose:flower tulip:flower daisy:flower lily:flower oak:tree "
    "pine:tree maple:tree birch:tree red:colour blue:colour green:colour yellow:colour purple:colour "
    "car:vehicle train:vehicle bus:vehicle bicycle:vehicle truck:vehicle piano:instrument "
    "guitar:instrument violin:instrument flute:instrument drum:instrument gold:metal silver:metal "
    "iron:metal copper:metal chair:furniture table:furniture bed:furniture sofa:furniture ant:insect "
    "bee:insect butterfly:insect water:drink tea:drink coffee:drink milk:drink"
)


def demo_words() -> list[str]:
    """Return the words that get one token each."""
    groups = (OPPOSITES, TRANSLATIONS, CAPITALS, IS_A)
    return sorted({word for group in groups for item in group for word in item})


POOLS: dict[str, list[str]] = {
    "name": (
        "Anna Ben Carla David Emma Felix Grace Hugo Iris Jack Karen Liam Maria Noah Olga Paul Quinn "
        "Rosa Sam Tina Umar Vera Will Xenia Yuki Zara Ahmed Priya Wei Chen Fatima Lars Ingrid Pedro "
        "Lucia Mei-Lin Jean-Luc Anne-Marie Mary-Jane Zoë José Björn Renée André Siobhan Nikolai Dmitri "
        "Aisha Omar Leila Kofi Amara Kenji Hana Ravi Anjali Mateo Sofia Elena Marco Giulia Oscar Alice "
        "Bob Charlie Eve Frank Gina Harry Isabel Jonas Kate Leo Mia Nina Otto Peter Rita Steve Tom "
        "Ursula Victor Wendy Alex Chris Dana Robin Kim Lee Max Tim Joe Ann Li Bo O'Brien D'Angelo "
        "Ana-Sofia Kai-Uwe Al Ed Thomas Robert Michael Sarah Laura Julia Daniel Martin Eric Simon"
    ).split(),
    "city": [
        *"Paris Berlin Rome Madrid Lisbon London Dublin Vienna Oslo Boston Chicago Denver Seattle Austin "
        "Toronto Montreal Sydney Perth Tokyo Osaka Kyoto Seoul Beijing Shanghai Mumbai Delhi Cairo Lagos "
        "Nairobi Lima Bogotá Quito Hamburg Munich Cologne Leipzig Lyon Nice Milan Naples Turin Porto "
        "Seville Valencia Krakow Prague Zurich Geneva Basel Leeds York Bristol Oxford Cambridge Glasgow "
        "Edinburgh Bergen Malmö Turku Ghent Antwerp Utrecht Delft Houston Dallas Phoenix Portland "
        "Miami Atlanta Memphis Havana Recife Hanoi Jakarta Manila Bangkok Dakar Accra Tunis Riga".split(),
        "New York",
        "San Francisco",
        "Los Angeles",
        "Hong Kong",
        "Cape Town",
        "New Delhi",
    ],
    "colour": [
        *"red blue green yellow purple orange pink black white grey brown teal turquoise magenta violet "
        "indigo crimson scarlet gold silver beige maroon navy olive lime cyan lavender coral mint amber".split(),
        "dark blue",
        "light green",
        "sky blue",
    ],
    "pet_name": (
        "Rex Bella Max Luna Charlie Milo Coco Daisy Rocky Buddy Lucy Molly Oscar Simba Nala Felix "
        "Whiskers Shadow Ginger Pepper Biscuit Cookie Muffin Bandit Ziggy Pixel Turbo Waffles Noodle "
        "Mochi Tofu Sushi Loki Thor Zeus Fluffy Spot Fido Snowy Smokey Tiger Misty Bruno Rusty Toby"
    ).split(),
    "job": [
        *"teacher nurse doctor baker farmer pilot carpenter plumber painter writer lawyer cook chef "
        "engineer programmer designer gardener librarian translator musician actor dentist electrician "
        "mechanic fisherman journalist photographer scientist student tailor waiter singer dancer "
        "sculptor surgeon architect accountant historian beekeeper firefighter postman driver".split(),
        "software engineer",
        "bus driver",
        "police officer",
        "data scientist",
    ],
    "food": [
        *"pizza pasta sushi ramen soup salad rice curry bread cheese chocolate pancakes tacos burritos "
        "dumplings noodles falafel hummus lasagna risotto paella goulash pierogi kimchi tofu steak "
        "burgers fries waffles apples mangoes strawberries cake pie chili couscous borscht ravioli".split(),
        "ice cream",
        "apple pie",
        "fried rice",
    ],
    "hobby": (
        "chess painting reading hiking swimming running cycling cooking gardening fishing knitting "
        "dancing singing climbing skiing sailing football tennis basketball golf yoga photography "
        "pottery origami juggling surfing drawing writing birdwatching woodworking archery karate"
    ).split(),
    "drink": [
        *"tea coffee water milk juice lemonade cocoa beer wine cider mate kefir chai matcha espresso "
        "cola soda kombucha rum tonic".split(),
        "green tea",
        "orange juice",
        "hot chocolate",
    ],
    "animal": (
        "dog cat horse bear wolf fox owl eagle lion tiger elephant giraffe zebra panda koala kangaroo "
        "penguin dolphin whale shark octopus turtle frog snake lizard rabbit hamster squirrel hedgehog "
        "otter badger raccoon deer moose camel llama goat sheep monkey gorilla parrot flamingo"
    ).split(),
    "band": (
        "Queen Abba Muse Blur Oasis Genesis Rush Yes Kraftwerk Nirvana Metallica Radiohead Coldplay "
        "Gorillaz Portishead Daft Zombies Kinks Doors Eagles Journey Toto Bananarama Ramones Clash"
    ).split(),
    "language": (
        "Python Rust Go Java Swift Kotlin Ruby Haskell Scala Julia Perl Lua Elixir Zig Clojure Erlang "
        "Fortran Cobol Lisp Prolog Dart Ada Nim Crystal Pascal"
    ).split(),
}

_ONSETS = (
    "b c d f g h j k l m n p r s t v w z br cr dr fr gr kr tr pr bl cl fl gl pl sl sh ch th st sk sp qu "
    "zw vr kn sn sm"
).split()
_VOWELS = "a a a e e i i o o u ai ei ou au ee oo ia io ea y".split()
_CODAS = "n r l s t m k d x th sh ng nd rt st ck lm rn z v p b g".split()


def make_up(rng: Random, capital: bool = True) -> str:
    """Make up one pronounceable word of two or three syllables."""
    parts = []
    for i in range(rng.choice((1, 2, 2, 2, 3, 3))):
        onset = "" if i == 0 and rng.random() < 0.15 else rng.choice(_ONSETS)
        coda = rng.choice(_CODAS) if rng.random() < 0.4 else ""
        parts.append(onset + rng.choice(_VOWELS) + coda)
    word = "".join(parts)
    if len(word) < 3:
        word += rng.choice("nrlst") + rng.choice("aeio")
    return word.capitalize() if capital else word


@cache
def _lexicon() -> list[str]:
    """Return the words that occur in training text anyway."""
    from faq import TERMS

    texts = [*demo_words(), *COMMON, *TOPICS, *(e.answer for e in TERMS)]
    texts += [v for values in POOLS.values() for v in values]
    words = {w for text in texts for w in text.replace("-", " ").split()}
    return sorted(w for w in words if len(w) > 3 and w.isalpha() and not is_held_out(w))


PIECES: tuple[list[str], list[str]] = ([], [])


def use_pieces(vocabulary: list[str]) -> None:
    """Let made-up words also be built from the tokens themselves (the trainer's choice)."""
    names = sorted(t for t in vocabulary if t.strip("\u0120").isascii())
    PIECES[0][:] = [t[1:] for t in names if t[0] == "\u0120" and t[1:].isalpha() and len(t) > 2]
    PIECES[1][:] = [t for t in names if t.isalpha() and t.isascii()]


def mix_up(rng: Random, capital: bool) -> str:
    """Return a known word, or the head of one with the tail of another.

    Syllables use few of the tokens; copying must work for all of them.
    """
    if PIECES[0] and rng.random() < 0.6:
        tails = "".join(rng.choice(PIECES[1]) for _ in range(rng.choice((0, 1, 1, 2)))).lower()
        return rng.choice(PIECES[0]) + tails
    word = rng.choice(_lexicon())
    if rng.random() < 0.65:
        tail = rng.choice(_lexicon())
        word = word[: rng.randint(2, len(word) - 1)] + tail[rng.randint(1, len(tail) - 2) :].lower()
    return word.capitalize() if capital else word.lower()


_PROPER = {"name", "city", "pet_name", "band", "language"}
# How often a value of each kind is of several parts.
_HYPHEN = {"name": 0.14, "city": 0.04, "pet_name": 0.04}
_TWO = {"city": 0.08, "name": 0.06, "food": 0.08, "job": 0.06, "band": 0.2, "colour": 0.05}


def _new_value(rng: Random, pool: str) -> str:
    capital = pool in _PROPER
    word = mix_up(rng, capital) if rng.random() < 0.4 else make_up(rng, capital)
    roll = rng.random()
    hyphen, two = _HYPHEN.get(pool, 0.0), _TWO.get(pool, 0.0)
    if roll < hyphen:
        return f"{word}-{make_up(rng, capital)}"
    if roll < hyphen + two:
        first = rng.choice(("New", "Port", "Saint", "Old")) if pool == "city" else None
        return f"{first or make_up(rng, capital)} {word}"
    if pool == "name" and roll > 0.97:
        return rng.choice(("O'", "D'", "Mc", "De")) + word
    return word


def pick_value(rng: Random, pool: str, strict: bool = False, made_up: float = 0.5) -> str:
    """Pick a value: from the pool or made up; held out if and only if `strict`.

    A strict value is no word of the demo lists either, whose words training shows elsewhere.
    """
    while True:
        value = _new_value(rng, pool) if rng.random() < made_up else rng.choice(POOLS[pool])
        if is_held_out(value) == strict and not (strict and value.lower() in _known()):
            return value


@cache
def _known() -> set[str]:
    """Return the words that training text holds for other reasons."""
    return {w.lower() for w in (*demo_words(), *COMMON)}


COMMON = (
    "apple river stone cloud paper green seven happy window garden silver mountain yellow kitchen "
    "orange music winter pencil rabbit candle ocean bridge forest button carpet dragon engine feather "
    "guitar hammer island jacket kettle ladder mirror needle oyster pillow quilt ribbon saddle tunnel "
    "umbrella velvet wagon zebra anchor basket castle desert echo flame glove harbor ink jungle knife "
    "lamp magnet nest olive pepper queen rocket spoon tiger urn violin whale yarn zero able blue "
    "clean dark early fast great heavy inner jolly kind large merry nice open proud quick round "
    "sharp tall under very warm young again brave calm deep every fresh"
).split()


def pick_word(rng: Random, strict: bool = False) -> str:
    """Pick a word to be repeated: a common one or a made-up one."""
    while True:
        capital, roll = rng.random() < 0.15, rng.random()
        if roll < 0.35:
            word = rng.choice(COMMON)
        else:
            word = make_up(rng, capital) if roll < 0.7 else mix_up(rng, capital)
        if is_held_out(word) == strict:
            return word


# What a tiny model cannot know: topics of every kind, for "I do not know that".
TOPICS = (
    "the weather;football;the world cup;the stock market;bitcoin;politics;the president;climate change;"
    "quantum physics;black holes;the Roman empire;world war two;Napoleon;Einstein;Shakespeare;Mozart;"
    "the French revolution;photosynthesis;evolution;dinosaurs;volcanoes;earthquakes;the human brain;"
    "vaccines;cancer;vitamins;diabetes;a heart attack;taxes;mortgages;inflation;the economy;insurance;"
    "a good restaurant;a recipe for lasagna;baking bread;how to cook rice;wine;yoga;meditation;jazz;"
    "the Beatles;Star Wars;Harry Potter;the Lord of the Rings;Netflix;video games;Minecraft;chess openings;"
    "the Olympics;tennis;cricket;the moon landing;Mars;Jupiter;the speed of light;gravity;electricity;"
    "magnets;chemistry;the periodic table;gold prices;steel;airplanes;electric cars;trains in Europe;"
    "travel to Japan;hotels in Rome;flights;visas;learning French;German grammar;Latin;poetry;Homer;"
    "Plato;philosophy;the meaning of life;religion;Buddhism;ghosts;aliens;dreams;love;marriage;raising kids;"
    "dogs breeds;training a puppy;gardening;roses;tomatoes;bees;sharks;elephants;penguins;JavaScript;"
    "Python decorators;SQL;databases;Docker;Kubernetes;Linux;Windows;git rebase;regular expressions;"
    "quicksort;linked lists;blockchain;encryption;wifi;5G;the internet;Google;Microsoft;Tesla;"
    "the population of India;the tallest building;the longest river;the deepest lake;the biggest country;"
    "Mount Everest;Antarctica;the Sahara;the Amazon;Venice;New Zealand;Brazil;the Great Wall;pyramids;"
    "the Titanic;Cleopatra;Genghis Khan;Leonardo da Vinci;Picasso;Van Gogh;opera;ballet;guitar chords;"
    "piano lessons;marathon training;losing weight;sleep;headaches;coffee beans;green tea;cheese;"
    "the news;elections;the United Nations;the law;contracts;copyright;patents;banks;pensions;jobs;"
    "interviews;my homework;an essay;calculus;algebra;geometry;prime numbers;statistics;probability;"
    "matrices;derivatives;integrals;Fermat;pi;relativity;atoms;electrons;DNA;genes;cells;bacteria;"
    "viruses;the immune system;blood pressure;the eye;muscles;bones;teeth;skin care;fashion;shoes;"
    "furniture;painting a wall;plumbing;car repair;bicycles;camping;hiking boots;fishing;knives;"
    "astronomy;telescopes;satellites;rockets;submarines;bridges;castles;knights;samurai;pirates;vikings;"
    "the Aztecs;the Inca;ancient Egypt;the cold war;the middle ages;the renaissance;printing;steam engines"
).split(";")


def pick_topic(rng: Random, strict: bool = False) -> str:
    """Pick a topic out of the model's world, sometimes a made-up one."""
    while True:
        topic = rng.choice(TOPICS)
        if rng.random() < 0.3:
            topic = rng.choice(("", "", "the ", "a ")) + make_up(rng, rng.random() < 0.5)
            topic += rng.choice(("", "", "", " theory", " disease", " festival", " code"))
        if is_held_out(topic) == strict:
            return topic
