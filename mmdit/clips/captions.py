"""Captions for made clips: one of several phrasings, from which every attribute can be read."""

# what is worn; {colour} and {garment} are plain words
WORN = {
    "plain": ("a plain {colour} {garment}", "a {colour} {garment} without a pattern"),
    "stripes": ("a striped {colour} {garment}", "a {colour} {garment} with stripes"),
    "dots": ("a dotted {colour} {garment}", "a {colour} {garment} with dots"),
}
DOING = {
    "walks left": ("walks left", "walking left", "walks to the left", "walking to the left"),
    "walks right": ("walks right", "walking right", "walks to the right", "walking to the right"),
    "turns round": ("turns round", "turning round", "turns around", "turning around"),
    "steps toward the camera": (
        "steps toward the camera", "stepping toward the camera", "comes toward the camera", "coming toward the camera",
    ),
    "stands and sways": (
        "stands and sways", "standing and swaying", "stands swaying", "standing and swaying gently",
    ),
}  # fmt: skip
PLACE = {
    "studio": "in a studio",
    "runway": "on a runway",
    "street": "in the street",
    "garden": "in a garden",
    "beach": "on the beach",
}
# {worn}, {does} ("walks left"), {doing} ("walking left"), {place}
TEMPLATES = (
    "{worn}, seen {doing}",
    "a woman in {worn} {does}",
    "a model in {worn} {does}",
    "a woman wearing {worn}, {doing}",
    "a model wearing {worn} {does} {place}",
    "{worn}, {doing} {place}",
    "a person in {worn}, {doing}",
    "{place}, a woman in {worn} {does}",
    "{place}, a model in {worn}, {doing}",
    "a clip of a woman in {worn}, {doing}",
    "a model shows {worn}, {doing}",
    "someone in {worn} {does} {place}",
    "fashion clip: {worn}, {doing}",
    "{worn} on a model who {does}",
)
CHOICES = 4  # numbers in [0, 1) that `caption` takes


def caption(attributes: dict[str, str], choices: list[float]) -> str:
    """A caption for garment, colour, pattern, motion and background; `choices` are CHOICES numbers in [0, 1)."""

    def pick(options: tuple[str, ...], at: int) -> str:
        return options[int(choices[at] * len(options)) % len(options)]

    garment = attributes["garment"]
    if garment == "skirt and top" and choices[3] < 0.5:
        garment = "top and skirt"
    worn = pick(WORN[attributes["pattern"]], 1).format(colour=attributes["colour"], garment=garment)
    forms = DOING[attributes["motion"]]
    does, doing = (forms[0], forms[1]) if choices[2] < 0.5 else (forms[2], forms[3])
    return pick(TEMPLATES, 0).format(worn=worn, does=does, doing=doing, place=PLACE[attributes["background"]])
