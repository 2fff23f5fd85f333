"""Word pools of the demo questions.

The pools are closed and small so that each word is one token of the demo tokenizer; the demo
models know these words well and others hardly.
"""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _split(
    "Nia Tom Ann Ben Eva Leo Mia Max Ida Kai Zoe Sam Lena Paul Rosa Finn Nora Hugo Clara Omar "
    "Ella Ivan Maya Noah Lucy Adam Vera Carl Jane Mark Anna Peter Sara David Emma Felix Greta "
    "Jonas Laura Oscar Petra Simon Tara Victor Wendy Yusuf Alice Bruno Celia Dario Edith Frank "
    "Gina Henry Irene Jack Karin Louis Marta Nils Olga Pablo Quinn Ralph Susan Theo Ursula "
    "Vince Wanda Xenia Yara Zack"
)
PLACES = _split(
    "Fenland Ardia Orla Melton Brindale Corvo Dunmore Elmsea Farrow Galdon Hartwick Isenburg "
    "Jorvik Kelmar Lindholm Marsh Norwell Oakham Pelham Quarry Redford Selby Tarn Ulverton "
    "Valmont Westby Yarrow Zell Ashby Birch Calder Dover Easton Fulham Grafton Hollis Iverness "
    "Juno Kirkwall Lorne Merrow Newport Osmond Perth Rydal Stowe Trent Upton Verona Wexford"
)
CAPITALS = _split(
    "Alder Bexley Cardon Delph Esker Foxton Garth Hexham Inver Jarrow Kendal Ludlow Mossley "
    "Naseby Oban Penrith Ripley Skipton Thirsk Ulster Vaduz Whitby Yeovil Zurin"
)
RIVERS = _split(
    "Arno Brill Clyde Drava Elbe Forth Glen Humber Isar Jura Kolva Loire Mersey Neva Oder Plym "
    "Rhine Severn Tyne Ural Volga Weser Yser Zala"
)
JOBS = _split(
    "baker doctor teacher farmer painter pilot singer tailor writer cook nurse sailor driver "
    "lawyer dentist builder gardener miner potter judge"
)
COLORS = _split(
    "red blue green yellow purple orange pink white black brown gray silver gold violet"
)
PETS = _split("parrot cat dog rabbit hamster turtle goat pony canary ferret lizard snake")
ITEMS = _split("lamp chair table clock kettle mirror basket blanket pillow ladder bucket hammer")
FOODS = _split("apples pears plums cookies cherries lemons carrots muffins nuts grapes")
THINGS = _split("marbles stickers pencils books coins cards stamps beads shells buttons")
OBJECTS = FOODS + THINGS
"""Things that people own in word problems."""
BOXES = _split("boxes bags jars trays crates")
