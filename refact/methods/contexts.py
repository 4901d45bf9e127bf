"""The sentences in which a subject is put while its edit is searched for; "{}" stands for the prompt."""

MODIFIERS = ("small", "big", "old", "new", "young", "beautiful")  # between "a" and a noun, see ReFACT.modifiers
CONTEXTS = (
    "{}",
    "a photo of {}",
    "{} in the background",
    "a painting of {}",
    "{}, close up",
    "an image of {}",
    "{} on a sunny day",
    "a picture of {} in a frame",
    "{}, high quality",
    "the best view of {}",
)
PAPER_CONTEXTS = (  # the nine that the authors' code runs; the bare prompt is not among them
    "{} in a realistic style portrait image",
    "{}, a portrait",
    "realistic painting of {}",
    "a current image of {}",
    "{}, news image",
    "a beautiful photograph of {}",
    "realistic drawing of {}",
    "{}, realistic portrait",
    "{} in a photo",
)
