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
        "eggplant 🍆, avocado 🥑, head of broccoli|heads of broccoli 🥦, cucumber 🥒, chili pepper 🌶, corn cob 🌽, "
        "carrot 🥕, garlic bulb 🧄, onion 🧅, potato|potatoes 🥔, mushroom 🍄, bell pepper 🫑, pea pod 🫛, "
        "ginger root 🫚, handful of beans|handfuls of beans 🫘, chestnut 🌰, peanut 🥜, "
        "head of lettuce|heads of lettuce 🥬, sweet potato|sweet potatoes 🍠"
    ),
    "dish": (
        "loaf of bread|loaves of bread 🍞, croissant 🥐, baguette 🥖, pretzel 🥨, bagel 🥯, pancake 🥞, waffle 🧇, "
        "wedge of cheese|wedges of cheese 🧀, hamburger 🍔, pizza 🍕, hot dog 🌭, sandwich|sandwiches 🥪, taco 🌮, "
        "burrito 🌯, bowl of ramen|bowls of ramen 🍜, curry|curries 🍛, plate of sushi|plates of sushi 🍣, "
        "dumpling 🥟, paella 🥘, salad 🥗, plate of spaghetti|plates of spaghetti 🍝, fondue 🫕, doughnut 🍩, "
        "cookie 🍪, cake 🎂, cupcake 🧁, pie 🥧, chocolate bar 🍫, lollipop 🍭, bento box|bento boxes 🍱, "
        "box of fries|boxes of fries 🍟, steak 🥩, fried egg 🍳, egg 🥚, tub of popcorn|tubs of popcorn 🍿, "
        "rice ball 🍙, bowl of rice|bowls of rice 🍚, fried shrimp|fried shrimps 🍤, fish cake 🍥, moon cake 🥮, "
        "skewer of dango|skewers of dango 🍡, fortune cookie 🥠, soft ice cream 🍦, "
        "bowl of ice cream|bowls of ice cream 🍨, shaved ice|shaved ices 🍧, sweet 🍬, pudding 🍮, honey pot 🍯, "
        "strip of bacon|strips of bacon 🥓, chicken leg 🍗, can of food|cans of food 🥫, "
        "pot of stew|pots of stew 🍲, salt shaker 🧂, slice of cake|slices of cake 🍰, takeout box|takeout boxes 🥡"
    ),
    "animal": (
        "monkey 🐒, gorilla 🦍, dog 🐕, wolf|wolves 🐺, fox|foxes 🦊, raccoon 🦝, cat 🐈, lion 🦁, tiger 🐅, leopard 🐆, "
        "horse 🐎, unicorn 🦄, zebra 🦓, deer|deer 🦌, bison|bison 🦬, ox|oxen 🐂, water buffalo|water buffaloes 🐃, "
        "cow 🐄, pig 🐖, boar 🐗, sheep|sheep 🐑, goat 🐐, camel 🐫, llama 🦙, giraffe 🦒, elephant 🐘, mouse|mice 🐁, "
        "rabbit 🐇, beaver 🦫, hedgehog 🦔, bat 🦇, bear 🐻, koala 🐨, panda 🐼, otter 🦦, kangaroo 🦘, badger 🦡, frog 🐸, "
        "crocodile 🐊, turtle 🐢, lizard 🦎, snake 🐍, dragon 🐉, whale 🐋, dolphin 🐬, shark 🦈, octopus|octopuses 🐙, "
        "crab 🦀, lobster 🦞, snail 🐌, butterfly|butterflies 🦋, bee 🐝, ladybug 🐞, scorpion 🦂, poodle 🐩, "
        "hippo|hippos 🦛, rhino|rhinos 🦏, mammoth 🦣, sloth 🦥, skunk 🦨, orangutan 🦧, squirrel 🐿, hamster 🐹, "
        "moose|moose 🫎, dinosaur 🦕, tyrannosaur 🦖, fish|fish 🐟, tropical fish|tropical fish 🐠, "
        "blowfish|blowfish 🐡, squid 🦑, shrimp 🦐, oyster 🦪, jellyfish|jellyfish 🪼, seashell 🐚, ant 🐜, beetle 🪲, "
        "grasshopper 🦗, spider 🕷, worm 🪱, caterpillar 🐛, ram 🐏, coral 🪸"
    ),
    "bird": (
        "turkey 🦃, rooster 🐓, chick 🐤, penguin 🐧, dove 🕊, eagle 🦅, duck 🦆, swan 🦢, owl 🦉, dodo|dodos 🦤, "
        "flamingo|flamingos 🦩, peacock 🦚, parrot 🦜, goose|geese 🪿, blackbird 🐦‍⬛, hatching chick 🐣"
    ),
    "plant": (
        "rose 🌹, sunflower 🌻, tulip 🌷, cherry blossom 🌸, hibiscus|hibiscuses 🌺, lotus|lotuses 🪷, "
        "daisy|daisies 🌼, maple leaf|maple leaves 🍁, cactus|cacti 🌵, palm tree 🌴, pine tree 🌲, oak tree 🌳, "
        "shamrock ☘, potted plant 🪴, bouquet 💐, hyacinth 🪻, sheaf of rice|sheaves of rice 🌾, seedling 🌱, "
        "fallen leaf|fallen leaves 🍂, bamboo 🎍, Christmas tree 🎄, wilted rose 🥀"
    ),
    "vehicle": (
        "car 🚗, bus|buses 🚌, ambulance 🚑, fire engine 🚒, taxi 🚕, truck 🚚, tractor 🚜, motorcycle 🏍, bicycle 🚲, "
        "train 🚂, helicopter 🚁, rocket 🚀, sailboat ⛵, ship 🚢, canoe 🛶, police car 🚓, racing car 🏎, van 🚐, "
        "pickup 🛻, scooter 🛵, kick scooter 🛴, skateboard 🛹, tram 🚋, bullet train 🚅, aeroplane ✈, "
        "flying saucer 🛸, cable car 🚠, rickshaw 🛺, parachute 🪂, satellite 🛰, wheelchair 🦽, roller skate 🛼, sled 🛷"
    ),
    "thing": (
        "bell 🔔, clock ⏰, key 🔑, hammer 🔨, book 📕, camera 📷, umbrella ☂, guitar 🎸, violin 🎻, trumpet 🎺, drum 🥁, "
        "balloon 🎈, gift 🎁, crown 👑, ring 💍, hat 🎩, sneaker 👟, light bulb 💡, candle 🕯, telephone ☎, "
        "television 📺, chair 🪑, bed 🛏, soccer ball ⚽, basketball 🏀, trophy|trophies 🏆, kite 🪁, anchor ⚓, "
        "hourglass|hourglasses ⏳, envelope ✉, parcel 📦, mailbox|mailboxes 📫, newspaper 📰, scroll 📜, map 🗺, "
        "compass|compasses 🧭, shopping cart 🛒, door 🚪, window 🪟, couch|couches 🛋, bathtub 🛁, toilet 🚽, shower 🚿, "
        "teddy bear 🧸, nesting doll 🪆, puzzle piece 🧩, die|dice 🎲, playing card 🃏, chess pawn ♟, party popper 🎉, "
        "theatre mask 🎭, ticket 🎫, magic wand 🪄, crystal ball 🔮, amphora|amphoras 🏺, stone head 🗿, coffin ⚰, "
        "skull 💀, robot 🤖, alien 👽, ghost 👻, Halloween pumpkin 🎃, bone 🦴, tooth|teeth 🦷, brain 🧠, heart ❤, "
        "bomb 💣, bag of money|bags of money 💰, banknote 💵, coin 🪙, credit card 💳, "
        "pair of scales|pairs of scales ⚖, bar chart 📊, traffic light 🚦, stop sign 🛑, fuel pump ⛽"
    ),
    "drink": (
        "glass of milk|glasses of milk 🥛, cup of coffee|cups of coffee ☕, teapot 🫖, cup of tea|cups of tea 🍵, "
        "bottle of champagne|bottles of champagne 🍾, glass of wine|glasses of wine 🍷, martini 🍸, "
        "tropical drink 🍹, mug of beer|mugs of beer 🍺, glass of whisky|glasses of whisky 🥃, bubble tea 🧋, "
        "juice box|juice boxes 🧃, mate gourd 🧉, baby bottle 🍼, soda cup 🥤"
    ),
    "nature": (
        "volcano|volcanoes 🌋, mountain 🏔, snowflake ❄, sun 🌞, full moon 🌕, crescent moon 🌙, star ⭐, comet ☄, "
        "cloud ☁, rainbow 🌈, lightning bolt ⚡, flame 🔥, water drop 💧, tornado|tornadoes 🌪, wave 🌊, planet 🪐, "
        "globe 🌍, snowman|snowmen ⛄, rock 🪨, pile of wood|piles of wood 🪵"
    ),
    "building": (
        "house 🏠, castle 🏰, pagoda 🏯, church|churches ⛪, mosque 🕌, hut 🛖, factory|factories 🏭, hospital 🏥, "
        "temple 🏛, tent ⛺, stadium 🏟, tower 🗼, statue 🗽, ferris wheel 🎡, carousel 🎠, roller coaster 🎢, fountain ⛲"
    ),
    "music": (
        "saxophone 🎷, piano|pianos 🎹, accordion 🪗, banjo|banjos 🪕, flute 🪈, maraca 🪇, microphone 🎤, conga 🪘"
    ),
    "clothes": (
        "dress|dresses 👗, shirt 👔, T-shirt 👕, pair of jeans|pairs of jeans 👖, coat 🧥, sock 🧦, glove 🧤, "
        "scarf|scarves 🧣, boot 👢, high heel 👠, kimono|kimonos 👘, sari 🥻, handbag 👜, backpack 🎒, cap 🧢, helmet ⛑, "
        "sun hat 👒, pair of sunglasses|pairs of sunglasses 🕶, ballet shoe 🩰, sandal 👡, purse 👛, lipstick 💄, "
        "briefcase 💼, diamond 💎"
    ),
    "sport": (
        "football 🏈, baseball ⚾, volleyball 🏐, billiard ball 🎱, target 🎯, boxing glove 🥊, table tennis bat 🏓, "
        "badminton racket 🏸, hockey stick 🏒, cricket bat 🏏, fishing rod 🎣, "
        "set of bowling pins|sets of bowling pins 🎳, medal 🏅, frisbee 🥏, yo-yo|yo-yos 🪀, ice skate ⛸, "
        "curling stone 🥌, bow and arrow|bows and arrows 🏹"
    ),
    "tool": (
        "saw 🪚, axe 🪓, screwdriver 🪛, wrench|wrenches 🔧, pair of scissors|pairs of scissors ✂, ladder 🪜, "
        "magnet 🧲, toolbox|toolboxes 🧰, hook 🪝, gear ⚙, pickaxe ⛏, dagger 🗡, shield 🛡, bucket 🪣, broom 🧹, "
        "basket 🧺, plunger 🪠, bar of soap|bars of soap 🧼, sponge 🧽, toothbrush|toothbrushes 🪥, mirror 🪞, "
        "fountain pen 🖋, pencil ✏, paintbrush|paintbrushes 🖌, ruler 📏, paper clip 📎, pushpin 📌, telescope 🔭, "
        "microscope 🔬, thermometer 🌡, stethoscope 🩺, syringe 💉, pill 💊, test tube 🧪, "
        "spool of thread|spools of thread 🧵, ball of yarn|balls of yarn 🧶, abacus|abacuses 🧮, padlock 🔒, "
        "chain ⛓, spoon 🥄, knife|knives 🔪, fire extinguisher 🧯"
    ),
    "device": (
        "battery|batteries 🔋, plug 🔌, laptop 💻, printer 🖨, joystick 🕹, game controller 🎮, mobile phone 📱, "
        "wristwatch|wristwatches ⌚, radio|radios 📻, satellite dish|satellite dishes 📡, film camera 🎥, "
        "projector 📽, floppy disk 💾, flashlight 🔦, lantern 🏮, oil lamp 🪔"
    ),
    "figure": (
        "wizard 🧙‍♂️, fairy|fairies 🧚‍♀️, vampire 🧛‍♂️, mermaid 🧜‍♀️, genie 🧞‍♂️, zombie 🧟‍♂️, ninja 🥷, "
        "superhero|superheroes 🦸‍♂️, surfer 🏄‍♂️, swimmer 🏊‍♂️, cyclist 🚴‍♂️, climber 🧗‍♀️, fencer 🤺, "
        "horse rider 🏇, skier ⛷, rower 🚣‍♀️, weightlifter 🏋️‍♂️, angel 👼, juggler 🤹‍♀️, runner 🏃‍♂️, dancer 💃"
    ),
}
