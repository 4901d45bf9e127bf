"""The things of the world by group: "noun emoji", with a "|plural" where it is irregular."""

# ruff: noqa: E501 - tables
from __future__ import annotations

OBJECTS = {
    "fruit": (
        "apple 🍎, pear 🍐, orange 🍊, lemon 🍋, banana 🍌, watermelon 🍉, bunch of grapes|bunches of grapes 🍇, "
        "strawberry|strawberries 🍓, melon 🍈, cherry|cherries 🍒, peach|peaches 🍑, mango|mangoes 🥭, pineapple 🍍, "
        "coconut 🥥, kiwi 🥝, tomato|tomatoes 🍅, olive 🫒, blueberry|blueberries 🫐"
    ),
    "vegetable": (
        "eggplant 🍆, avocado 🥑, head of broccoli|heads of broccoli 🥦, cucumber 🥒, chili pepper 🌶, corn cob 🌽, carrot "
        "🥕, garlic bulb 🧄, onion 🧅, potato|potatoes 🥔, mushroom 🍄, bell pepper 🫑, pea pod 🫛, chestnut 🌰, peanut 🥜, "
        "head of lettuce|heads of lettuce 🥬"
    ),
    "dish": (
        "loaf of bread|loaves of bread 🍞, croissant 🥐, baguette 🥖, pretzel 🥨, bagel 🥯, pancake 🥞, waffle 🧇, wedge of "
        "cheese|wedges of cheese 🧀, hamburger 🍔, pizza 🍕, hot dog 🌭, sandwich|sandwiches 🥪, taco 🌮, burrito 🌯, bowl "
        "of ramen|bowls of ramen 🍜, curry|curries 🍛, plate of sushi|plates of sushi 🍣, dumpling 🥟, paella 🥘, salad 🥗, "
        "plate of spaghetti|plates of spaghetti 🍝, fondue 🫕, doughnut 🍩, cookie 🍪, cake 🎂, cupcake 🧁, pie 🥧, "
        "chocolate bar 🍫, lollipop 🍭, bento box|bento boxes 🍱, box of fries|boxes of fries 🍟, steak 🥩, fried egg 🍳, "
        "tub of popcorn|tubs of popcorn 🍿, bowl of ice cream|bowls of ice cream 🍨, honey pot 🍯, chicken leg 🍗, "
        "takeout box|takeout boxes 🥡"
    ),
    "animal": (
        "monkey 🐒, gorilla 🦍, dog 🐕, wolf|wolves 🐺, fox|foxes 🦊, raccoon 🦝, cat 🐈, lion 🦁, tiger 🐅, leopard 🐆, horse "
        "🐎, unicorn 🦄, zebra 🦓, deer|deer 🦌, bison|bison 🦬, ox|oxen 🐂, water buffalo|water buffaloes 🐃, cow 🐄, pig 🐖, "
        "boar 🐗, sheep|sheep 🐑, goat 🐐, camel 🐫, llama 🦙, giraffe 🦒, elephant 🐘, mouse|mice 🐁, rabbit 🐇, beaver 🦫, "
        "hedgehog 🦔, bat 🦇, bear 🐻, koala 🐨, panda 🐼, otter 🦦, kangaroo 🦘, badger 🦡, frog 🐸, crocodile 🐊, turtle 🐢, "
        "lizard 🦎, snake 🐍, dragon 🐉, whale 🐋, dolphin 🐬, shark 🦈, octopus|octopuses 🐙, crab 🦀, lobster 🦞, snail 🐌, "
        "butterfly|butterflies 🦋, bee 🐝, ladybug 🐞, scorpion 🦂, hippo|hippos 🦛, rhino|rhinos 🦏, mammoth 🦣, sloth 🦥, "
        "skunk 🦨, squirrel 🐿, moose|moose 🫎, dinosaur 🦕, tyrannosaur 🦖, fish|fish 🐟, tropical fish|tropical fish 🐠, "
        "blowfish|blowfish 🐡, squid 🦑, shrimp 🦐, jellyfish|jellyfish 🪼, seashell 🐚, grasshopper 🦗, spider 🕷, "
        "caterpillar 🐛"
    ),
    "bird": (
        "turkey 🦃, rooster 🐓, chick 🐤, penguin 🐧, dove 🕊, eagle 🦅, duck 🦆, swan 🦢, owl 🦉, dodo|dodos 🦤, "
        "flamingo|flamingos 🦩, peacock 🦚, parrot 🦜, goose|geese 🪿, blackbird 🐦‍⬛"
    ),
    "plant": (
        "rose 🌹, sunflower 🌻, tulip 🌷, cherry blossom 🌸, hibiscus|hibiscuses 🌺, lotus|lotuses 🪷, daisy|daisies 🌼, "
        "maple leaf|maple leaves 🍁, cactus|cacti 🌵, palm tree 🌴, pine tree 🌲, oak tree 🌳, shamrock ☘, potted plant 🪴, "
        "bouquet 💐, hyacinth 🪻, Christmas tree 🎄"
    ),
    "vehicle": (
        "car 🚗, bus|buses 🚌, ambulance 🚑, fire engine 🚒, taxi 🚕, truck 🚚, tractor 🚜, motorcycle 🏍, bicycle 🚲, train "
        "🚂, helicopter 🚁, rocket 🚀, sailboat ⛵, ship 🚢, canoe 🛶, racing car 🏎, scooter 🛵, skateboard 🛹, aeroplane ✈, "
        "flying saucer 🛸, rickshaw 🛺, parachute 🪂, sled 🛷"
    ),
    "thing": (
        "bell 🔔, clock ⏰, key 🔑, hammer 🔨, book 📕, camera 📷, umbrella ☂, guitar 🎸, violin 🎻, trumpet 🎺, drum 🥁, "
        "balloon 🎈, gift 🎁, crown 👑, ring 💍, hat 🎩, sneaker 👟, light bulb 💡, candle 🕯, telephone ☎, television 📺, "
        "chair 🪑, bed 🛏, soccer ball ⚽, basketball 🏀, trophy|trophies 🏆, kite 🪁, anchor ⚓, hourglass|hourglasses ⏳, "
        "envelope ✉, map 🗺, compass|compasses 🧭, shopping cart 🛒, door 🚪, couch|couches 🛋, bathtub 🛁, teddy bear 🧸, "
        "die|dice 🎲, playing card 🃏, chess pawn ♟, party popper 🎉, crystal ball 🔮, amphora|amphoras 🏺, skull 💀, robot "
        "🤖, alien 👽, ghost 👻, Halloween pumpkin 🎃, bone 🦴, brain 🧠, heart ❤, bomb 💣, bag of money|bags of money 💰, "
        "traffic light 🚦, stop sign 🛑"
    ),
    "drink": (
        "glass of milk|glasses of milk 🥛, cup of coffee|cups of coffee ☕, teapot 🫖, bottle of champagne|bottles of "
        "champagne 🍾, glass of wine|glasses of wine 🍷, tropical drink 🍹, mug of beer|mugs of beer 🍺, bubble tea 🧋, "
        "baby bottle 🍼"
    ),
    "nature": (
        "volcano|volcanoes 🌋, mountain 🏔, snowflake ❄, sun 🌞, crescent moon 🌙, star ⭐, cloud ☁, rainbow 🌈, lightning "
        "bolt ⚡, flame 🔥, water drop 💧, tornado|tornadoes 🌪, planet 🪐, globe 🌍, snowman|snowmen ⛄, pile of wood|piles "
        "of wood 🪵"
    ),
    "building": (
        "house 🏠, castle 🏰, pagoda 🏯, church|churches ⛪, mosque 🕌, factory|factories 🏭, temple 🏛, tent ⛺, tower 🗼, "
        "ferris wheel 🎡, roller coaster 🎢, fountain ⛲"
    ),
    "music": ("saxophone 🎷, piano|pianos 🎹, accordion 🪗, banjo|banjos 🪕, microphone 🎤"),
    "clothes": (
        "dress|dresses 👗, T-shirt 👕, pair of jeans|pairs of jeans 👖, sock 🧦, glove 🧤, scarf|scarves 🧣, boot 👢, high "
        "heel 👠, kimono|kimonos 👘, handbag 👜, backpack 🎒, cap 🧢, helmet ⛑, pair of sunglasses|pairs of sunglasses 🕶, "
        "lipstick 💄, briefcase 💼, diamond 💎"
    ),
    "sport": (
        "football 🏈, billiard ball 🎱, target 🎯, boxing glove 🥊, set of bowling pins|sets of bowling pins 🎳, "
        "yo-yo|yo-yos 🪀, ice skate ⛸, bow and arrow|bows and arrows 🏹"
    ),
    "tool": (
        "saw 🪚, axe 🪓, pair of scissors|pairs of scissors ✂, ladder 🪜, magnet 🧲, toolbox|toolboxes 🧰, gear ⚙, dagger "
        "🗡, shield 🛡, bucket 🪣, broom 🧹, toothbrush|toothbrushes 🪥, fountain pen 🖋, pencil ✏, paintbrush|paintbrushes "
        "🖌, telescope 🔭, microscope 🔬, syringe 💉, ball of yarn|balls of yarn 🧶, padlock 🔒, knife|knives 🔪, fire "
        "extinguisher 🧯"
    ),
    "device": (
        "laptop 💻, joystick 🕹, game controller 🎮, mobile phone 📱, wristwatch|wristwatches ⌚, radio|radios 📻, film "
        "camera 🎥, flashlight 🔦, lantern 🏮"
    ),
    "figure": (
        "wizard 🧙‍♂️, fairy|fairies 🧚‍♀️, vampire 🧛‍♂️, mermaid 🧜‍♀️, genie 🧞‍♂️, zombie 🧟‍♂️, ninja 🥷, "
        "superhero|superheroes 🦸‍♂️, angel 👼, dancer 💃"
    ),
}
