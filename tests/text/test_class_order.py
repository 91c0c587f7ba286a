"""The bundled classes are in the order of the labels, as lists of other projects give it."""

import re

import pytest
import torch

from resilient_heads.text.prebuilt.bundled import load_bundled, load_descriptions

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
# ``fine_label_names`` of the file ``meta`` that comes with CIFAR-100 (Krizhevsky, 2009), as its users quote it.
CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm
""".split()  # noqa: SIM905
# ``class_label.names`` on the card of Food-101's repository on the Hub. It is the order of the data set's list of
# labels; torchvision sorts the names instead, which puts "cheese_plate" before "cheesecake".
FOOD101_HUB = """
apple_pie baby_back_ribs baklava beef_carpaccio beef_tartare beet_salad beignets bibimbap bread_pudding
breakfast_burrito bruschetta caesar_salad cannoli caprese_salad carrot_cake ceviche cheesecake cheese_plate
chicken_curry chicken_quesadilla chicken_wings chocolate_cake chocolate_mousse churros clam_chowder club_sandwich
crab_cakes creme_brulee croque_madame cup_cakes deviled_eggs donuts dumplings edamame eggs_benedict escargots falafel
filet_mignon fish_and_chips foie_gras french_fries french_onion_soup french_toast fried_calamari fried_rice
frozen_yogurt garlic_bread gnocchi greek_salad grilled_cheese_sandwich grilled_salmon guacamole gyoza hamburger
hot_and_sour_soup hot_dog huevos_rancheros hummus ice_cream lasagna lobster_bisque lobster_roll_sandwich
macaroni_and_cheese macarons miso_soup mussels nachos omelette onion_rings oysters pad_thai paella pancakes panna_cotta
peking_duck pho pizza pork_chop poutine prime_rib pulled_pork_sandwich ramen ravioli red_velvet_cake risotto samosa
sashimi scallops seaweed_salad shrimp_and_grits spaghetti_bolognese spaghetti_carbonara spring_rolls steak
strawberry_shortcake sushi tacos takoyaki tiramisu tuna_tartare waffles
""".split()  # noqa: SIM905
# torchvision's names for the rows whose word in WordNet stands for two classes.
RENAMED = {"crane bird": "crane", "maillot tank suit": "maillot"}


def plain(text: str) -> str:
    return " ".join(re.findall("[a-z0-9]+", text.lower()))


@pytest.mark.parametrize(
    # torchvision sorts the names of Food-101; the others are the lists above
    ("name", "expected"),
    [("cifar10", CIFAR10), ("stl10", STL10), ("cifar100", CIFAR100), ("food101", sorted(FOOD101_HUB))],
)
def test_small_datasets_have_the_order_of_their_labels(name: str, expected: list[str]) -> None:
    assert [label.replace(" ", "_") for label in load_descriptions(name).class_names] == expected


def test_imagenet_has_the_order_of_torchvision() -> None:
    meta = pytest.importorskip("torchvision.models._meta", reason="needs torchvision")
    assert load_descriptions("imagenet1k").class_names == tuple(meta._IMAGENET_CATEGORIES)


def test_imagenet_has_the_order_of_wordnet_synsets() -> None:
    """The list of timm names each row's synset and its definition, independently of torchvision."""
    info = pytest.importorskip("timm.data", reason="open_clip brings timm").ImageNetInfo("imagenet-1k")
    words = [{plain(word) for word in info.index_to_description(row).split(",")} for row in range(1000)]
    names = load_descriptions("imagenet1k").class_names
    keys = [plain(RENAMED.get(label, label)) for label in names]
    assert [(row, names[row]) for row in range(1000) if keys[row] not in words[row]] == []
    # An exchange within these three pairs would pass the check above, so compare their definitions.
    pairs = {(i, j) for i in range(1000) for j in range(i) if keys[i] in words[j] and keys[j] in words[i]}
    assert {tuple(sorted({names[i], names[j]})) for i, j in pairs} == {
        ("Cardigan", "cardigan"),
        ("crane", "crane bird"),
        ("maillot", "maillot tank suit"),
    }
    for label, meant in {
        "Cardigan": "corgi",
        "cardigan": "garment|jacket|sweater|knitted",
        "crane bird": "bird",
        "crane": "lifts",
        "maillot": "tights|dancer|acrobat",
        "maillot tank suit": "bathing suit",
    }.items():
        assert re.search(meant, info.index_to_description(names.index(label), detailed=True).partition(":")[2]), label


def test_food101_on_the_hub_has_another_order() -> None:
    """A model trained on the Hub's labels takes ``load_embeddings("food101").select(names)``."""
    ours = load_bundled("food101")
    theirs = ours.select(FOOD101_HUB)
    moved = [FOOD101_HUB[row] for row in range(101) if not torch.equal(ours.vectors[row], theirs.vectors[row])]
    assert moved == ["cheesecake", "cheese_plate"]
