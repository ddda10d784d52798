"""Write the two corpora of this repository, english.jsonl and legal.jsonl.

    python scripts/make_corpora.py [--out DIR]

english.jsonl  {"text"}: small general scenes and stories, to pretrain the base model
legal.jsonl    {"text"}: clauses of contracts and statutes; {"prompt", "answer"}: questions on such clauses

Both come from a seeded grammar: every run on every machine writes the same bytes. The grammar is data:

    {a|b|c}         one of the alternatives (they nest; an empty one makes the text optional)
    [slot]          a word or phrase of the table `slot`, itself expanded; or a variable bound earlier
    [x=slot]        the same, and remember it as [x]: this is how a name or an amount comes back later
    [x:words]       remember the words as [x] and print nothing
    [money 20-90]   a number of that kind in that range (see NUMBERS)
    [x.s]           a form of a word: plural, pronoun, ... (see FORMS)
    //              a new line

"a" becomes "an" and sentences get their capitals afterwards, so the tables need not care.
"""
import argparse
import json
import random
import re
from pathlib import Path

# -----------------------------------------------------------------------------
# Words. One table a line, "name: entry, entry" or, where the entries hold commas, "name: entry | entry".

WORDS = """
female: Anna, Maria, Clara, Helen, Ruth, Nora, Irene, Lucy, Emma, Alice, Julia, Sofia, Martha, Edith, Laura,
  Diana, Agnes, Paula, Teresa, Ellen, Sarah, Rachel, Naomi, Judith, Esther, Miriam, Leah, Hannah, Abigail,
  Rebecca, Ingrid, Astrid, Greta, Frieda, Heidi, Olga, Irina, Tanya, Vera, Nadia, Yuki, Keiko, Mei, Lan,
  Priya, Anita, Leila, Fatima, Amina, Zara, Carmen, Lucia, Elena, Rosa, Ines, Pilar, Bianca, Chiara, Silvia,
  Monica, Yvonne, Colette, Margot, Denise, Simone, Celeste, Fiona, Moira, Bridget, Maeve, Sheila, Gwen,
  Bronwen, Megan, Cora, Dora, Flora, Stella, Wilma, Harriet, Beatrice, Cecilia, Dorothy, Eleanor, Florence,
  Gloria, Henrietta, Isabel, Josephine, Katherine, Louise, Matilda, Nancy, Olivia, Penelope, Rosalind, Susan,
  Tabitha, Ursula, Winifred
male: Adam, Albert, Andrew, Anton, Arthur, Benjamin, Boris, Brian, Bruno, Carl, Cedric, Colin, Conrad, Cyril,
  Daniel, David, Dennis, Dominic, Duncan, Edgar, Edmund, Edward, Emil, Eric, Ernest, Felix, Finn, Frank, Fred,
  Gareth, George, Gilbert, Gordon, Gregory, Gustav, Harold, Hector, Henry, Herbert, Hugo, Ian, Igor, Isaac,
  Ivan, Jacob, James, Jasper, Jerome, Joel, John, Jonas, Joseph, Julian, Karim, Keith, Kenji, Kevin, Lars,
  Laurence, Leo, Leonard, Louis, Lucas, Magnus, Malcolm, Marco, Martin, Matthew, Michael, Miguel, Nathan,
  Neil, Nicholas, Niels, Noah, Oliver, Omar, Oscar, Otto, Owen, Pablo, Patrick, Paul, Pedro, Peter, Philip,
  Ralph, Ravi, Raymond, Rupert, Samuel, Sebastian, Simon, Stefan, Stephen, Theodore, Thomas, Victor, Walter,
  William, Xavier
surname: Abbott, Adler, Alvarez, Archer, Baker, Barlow, Becker, Benson, Bishop, Blake, Boyd, Brandt, Brook,
  Burns, Byrne, Carver, Castillo, Chandler, Cole, Cooper, Costa, Crane, Dalton, Dawson, Dixon, Doyle, Drake,
  Duarte, Ekman, Ellis, Evans, Farrell, Fisher, Fleming, Foster, Fowler, Garcia, Gibson, Goodwin, Gray,
  Greene, Haas, Hale, Harper, Hayes, Holt, Hughes, Hunter, Ibrahim, Ivers, Jensen, Jordan, Keller, Kemp, Khan,
  Klein, Kovacs, Lambert, Larsen, Lindgren, Lopez, Mason, Mercer, Miller, Moreno, Morris, Nakano, Nash,
  Newton, Nolan, Novak, Nunez, Osborne, Owens, Palmer, Parker, Patel, Payne, Perez, Porter, Quinn, Ramsey,
  Reid, Reyes, Rivera, Romero, Rossi, Sanders, Sawyer, Schmidt, Sharp, Shaw, Silva, Stone, Sutton, Tanaka,
  Tate, Thorne, Turner, Vance, Vega, Wagner, Walsh, Weaver, West
person: [female], [male]
full: [female] [surname], [male] [surname], [person] {B.|C.|E.|H.|J.|L.|M.|R.|T.} [surname]
town: [town_a][town_b], [town_c] [town_d]
town_a: Ash, Bram, Cold, Dun, East, Fair, Glen, Hart, Kings, Lang, Mill, New, Oak, Pem, Red, Stan, Thorn, Up,
  West, Win
town_b: ford, ton, bury, dale, field, wick, stead, port
town_c: Black, Clear, Deer, Elk, Green, Long, Maple, North, Silver, South, Stony, White
town_d: Bay, Creek, Falls, Harbor, Hill, Lake, Ridge, Springs
country: Norway, Spain, Portugal, Japan, Chile, Kenya, Canada, Greece, Poland, Ireland, Peru, Egypt, Finland,
  Brazil, Iceland, Italy, Morocco, India, Mexico, Turkey, Vietnam, Austria, Denmark, Scotland
river: {Arrow|Bell|Calder|Dove|Elder|Fern|Hazel|Lark|Moss|Otter|Reed|Swan|Tarn|Wren} River, river [surname]
street: [surname] {Street|Lane|Road|Avenue}, {Bridge|Church|Market|Park|River|School|Station|Garden}
  {Street|Lane|Road}
day: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
month: January, February, March, April, May, June, July, August, September, October, November, December
season: spring, summer, autumn, winter
part: morning, afternoon, evening
color: red, blue, green, yellow, white, black, brown, gray, orange, purple, pink, silver
adj: small, large, old, new, quiet, bright, heavy, narrow, clean, dusty, plain, strange, lovely, broken,
  simple, famous, empty, warm, cold, damp, tall, low, round, thin, thick, soft, rough, smooth, strong, odd,
  useful, ugly, elegant, ordinary, handsome, cheap, expensive, wonderful, crooked, modest
mood: happy, tired, proud, nervous, calm, hungry, curious, sad, cheerful, angry, excited, worried, pleased,
  bored, grateful, lonely, surprised, relieved, shy, patient
trait: kind, clever, stubborn, honest, careful, generous, lazy, brave, gentle, impatient, polite, serious,
  funny, modest
adverb: slowly, quickly, quietly, carefully, gladly, suddenly, politely, patiently, nervously, calmly,
  happily, eagerly
animal: dog, cat, horse, cow, goat, sheep, pig, fox, rabbit, donkey, mouse, squirrel, badger, hedgehog, deer,
  otter, bear, wolf, frog, turtle, ox
bird: crow, owl, goose, duck, sparrow, robin, heron, swallow, hen, eagle, magpie, parrot, pigeon, swan, stork,
  gull
tree: oak, elm, apple tree, pine, birch, maple, willow, chestnut tree, cherry tree, fir, linden, beech,
  poplar, pear tree
flower: rose, tulip, daisy, lily, poppy, violet, sunflower, iris, orchid, marigold
fruit: apple, pear, plum, cherry, peach, lemon, orange, melon, apricot, banana, fig, grape, mango
veg: carrot, potato, onion, tomato, pumpkin, leek, turnip, bean, cabbage, cucumber, beet, radish, pepper,
  mushroom
dish: soup, stew, bread, rice, pasta, pie, porridge, salad, roast chicken, fish, cheese, goulash, cake
drink: tea, coffee, milk, cider, lemonade, hot chocolate, water, apple juice
thing: lamp, basket, clock, mirror, kettle, blanket, chair, table, suitcase, umbrella, bicycle, radio, camera,
  notebook, map, hat, coat, scarf, knife, violin, drum, mug, vase, carpet, candle, box, painting, ring,
  wallet, telescope, jar, toy boat, pillow, key, bell, ladder, bench, desk, shelf, watch
tool: hammer, saw, chisel, drill, file, wrench, rope, brush, spade, rake, hoe, axe, plane, screwdriver, bucket
material: wood, iron, glass, clay, stone, wool, leather, paper, copper, silk, cotton, brass, straw, wax
room: kitchen, cellar, attic, bedroom, hall, library, workshop, dining room, bathroom, office
place: market, harbor, station, school, church, park, museum, bakery, library, theater, post office, hospital,
  town hall, bridge, square, mill, beach, forest, castle, hotel, inn, bank, airport, court, fire station
job: teacher, doctor, baker, farmer, carpenter, nurse, lawyer, clerk, driver, sailor, painter, tailor, miner,
  engineer, cook, gardener, librarian, judge, fisher, shepherd, waiter, pilot, actor, plumber, potter, weaver,
  mason, singer
kin: brother, sister, mother, father, uncle, aunt, cousin, grandmother, grandfather, neighbor, friend, teacher
mate: friend, neighbor, cousin, colleague, partner
subject: history, geography, arithmetic, music, biology, chemistry, drawing, Latin, French, physics, grammar,
  astronomy
sport: football, tennis, hockey, basketball, volleyball, cricket, handball, rugby, table tennis
instrument: piano, violin, flute, cello, trumpet, guitar, harp, drum, clarinet, oboe, organ, accordion
shop: bakery, bookshop, hardware store, toy shop, shoe shop, flower shop, grocery, clothing store, pharmacy
vehicle: bus, train, taxi, truck, boat, ferry, van, bicycle, tram, car
illness: cold, fever, headache, sore throat, broken arm, cough, stomach ache, sprained ankle, toothache, rash
vp: bought a [adj] [thing] | sold the [adj] [thing] | lost a [color] [thing] | found a [thing] under the
  [tree] | cooked [dish] with [veg.s] | drank a cup of [drink] | walked to the [place] | waited near the
  [place] | read a book about [animal.s] | wrote a letter to a [job] | repaired the [adj] [thing] with a
  [tool] | painted the [room] [color] | planted [w 2-9] [flower.s] | counted [n 12-90] [bird.s] near the
  [river] | practiced the [instrument] for [n 10-55] minutes | talked to the [job] about [subject] | borrowed
  a [tool] from the [job] | carried a basket of [fruit.s] to the [place] | took the [vehicle] to [town] | fed
  the [animal.s] and the [bird.s] | swept the [room] | slept until {seven|eight|nine|ten} | listened to a
  [instrument] concert | visited the [place] in [town] | paid [money 3-80] for a [thing] | cleaned the
  [thing.s] in the [room] | played [sport] behind the [place] | watched the [bird.s] over the [place] |
  learned a song from [country] | made a [thing] of [material] | asked the [job] for directions | picked [n
  10-60] [fruit.s] from the tree | studied [subject] in the library
wx: It rained {all|most of the} [part]. | The [part] was {warm|cold|windy|foggy|clear} and the sky was
  {gray|blue|full of clouds}. | {A cold wind|A light breeze|A warm wind} came from the
  {north|south|east|west}. | It was {only|about} [n 2-30] degrees at noon. | Snow {covered|lay on} the roofs
  of [town]. | The {rain|wind} began at [time]. | Clouds {gathered|hung} over the [place]. | By [part] the
  {rain|snow|fog|storm} had {stopped|gone}. | The leaves of the [tree] {turned yellow|moved in the wind|were
  wet}.
aside: [wx] | The [adj] [animal] {near|behind|beside} the [place] {did not move|looked up|ran away|was
  asleep}. | A [bird] sang in the [tree]. | {Somebody|A [job]|A child} was {singing|laughing|whistling} near
  the [place]. | A [adj] [thing] stood {by the door|in the corner|near the window}. | There was a smell of
  {[drink]|[dish]|fresh paint|wet [material]} in the [room]. | The [job] {smiled|nodded|shook hands with
  everyone|said nothing}. | The clock {struck|showed} {six|seven|nine|ten|eleven}. | Two [job.s]
  {talked|argued|joked} about [sport]. | {Nobody|Hardly anybody} noticed the [adj] [thing] {on the table|near
  the wall}. | The {bus|train|ferry} to [town] was late {again|as usual}.
moral: Those who hurry often go twice. | A small promise kept is better than a large one forgotten. | Help
  that comes early is worth double. | It is wise to look before asking. | Pride is a poor guide. | Even the
  weak can help the strong. | What is shared is not lost. | He who wants everything may end with nothing. |
  Patience opens many doors. | A borrowed coat never fits for long.
state: Alabama, Alaska, Arizona, Arkansas, California, Colorado, Connecticut, Delaware, Florida, Georgia,
  Hawaii, Idaho, Illinois, Indiana, Iowa, Kansas, Kentucky, Louisiana, Maine, Maryland, Massachusetts,
  Michigan, Minnesota, Mississippi, Missouri, Montana, Nebraska, Nevada, New Hampshire, New Jersey, New
  Mexico, New York, North Carolina, North Dakota, Ohio, Oklahoma, Oregon, Pennsylvania, Rhode Island, South
  Carolina, South Dakota, Tennessee, Texas, Utah, Vermont, Virginia, Washington, West Virginia, Wisconsin,
  Wyoming
brand: [surname], [surname] & [surname], [emblem]
emblem: Alder, Beacon, Cedar, Delta, Eagle, Granite, Harbor, Ivory, Juniper, Keystone, Lakeside, Meridian,
  Northern, Orchid, Pioneer, Quarry, Summit, Union, Valley, Zenith
trade: Foods, Textiles, Logistics, Holdings, Electric, Motors, Timber, Software, Properties, Paper, Shipping,
  Medical, Glass, Energy, Printing, Partners, Steel, Farms
company: [brand] [trade] {Inc|LLC|Ltd|Corp|LLP|Company|Group}
party: [full], [company]
shall: shall, shall, must, will, agrees to, undertakes to
section: Section [n 1-24], Section [n 1-19].[n 1-9], Article [n 1-15], paragraph ({a|b|c|d|e}) of Section [n
  2-20], Schedule {A|B|C|D}
goods: office chairs, steel pipes, oak boards, printed books, water pumps, cotton shirts, electric motors,
  glass bottles, coffee beans, laptop computers, bicycle parts, medical gloves, solar panels, floor tiles,
  paper rolls, copper wire
service: cleaning, bookkeeping, software development, catering, landscaping, security, translation, marketing,
  accounting, transport, architectural, research, maintenance, engineering
position: sales manager, head of accounts, plant supervisor, software engineer, regional director, warehouse
  clerk, legal assistant, chief chemist, production planner, store manager, design engineer, office
  administrator
premises: apartment, house, warehouse, office suite, shop, farm, storage unit, studio, workshop, restaurant
  space
address: [n 2-995] [street], [town], [state] | the {first|second|third|fourth} floor of [n 2-995] [street],
  [town]
subject_to: {||, except as the law otherwise requires|, unless the parties agree otherwise} | {||, subject to
  [section]|, to the extent the law allows}
"""

# -----------------------------------------------------------------------------
# English. "name: template" is a scene; indented lines continue it. "Q: ... A: ..." closes a reading scene.

SCENES = """
travel: {In [month]|Last [season]|In the [season] of [year]} [p=person] {travelled|went|set out} to [town] {by
  [vehicle]|with [p.his] [kin]|alone}. The journey took [w 2-9] {hours|days}{ and cost [money 20-400]|}. [wx]
  On the way [p.he] [vp]. In [town] [p.he] [vp]{, and later [p.he] [vp]|}. [aside]
cooking: To {make|cook|prepare} [d=dish] for [w 2-9] people, {take|you need} [n 2-9] [v=veg.s], {a little
  salt|some butter|half a cup of oil} and [n 100-900] grams of [f=fruit.s]. {Wash|Peel|Cut} the [v] and
  {fry|boil|bake} them for [n 5-45] minutes. {Then|After that} add the [f] and stir {slowly|well|from time to
  time}. {Serve the [d]|The [d] is best} {hot|cold|warm} with {[drink]|a glass of [drink]}. {[p=person] adds
  [veg.s] as well.|}
weather: {The weather report for [town]|Weather for [day]}: {rain|snow|sun|fog|wind} in the [part], with a
  high of [n 5-24] degrees and a low of [n 1-4]. [wx] {Farmers|Drivers|Sailors} near the [river] should {be
  careful|stay at home|expect delays} until [time]. On [day] it will be {warmer|colder|drier}. There is a [n
  10-90]% chance of {rain|storms|snow} {in the north|near the coast|in the hills}.
school: [p=person] is in {the third|the fifth|the last} class of the school in [town]. [p.his]
  {favorite|hardest} subject is [s=subject], which is taught by [t=full]. {On [day]|Last week} the class had a
  test in [s] with [n 10-40] questions. [p] answered {all|most|half} of them and was [mood]. "{Well done|You
  can do better|Read the text again}, [p]," said [p]'s teacher. {After school|At noon} [p.he] [vp]. {[aside]|}
sport: [town] {beat|lost to|played against} [town] in a {long|close|lively} [sport] {match|game} on [day]. {[n
  200-900] people|A crowd of [n 200-900]} watched. [p=full] {scored first|played well|was the best player},
  but in the second half [q=person] {fell|was hurt|made a mistake}. The score was [n 1-5] to [n 6-9]. "We were
  [mood]," said [p], who [vp] after the game. {The next match is on [day] at [time].|[wx]}
garden: [p=person] has a [adj] garden {behind the house|near the [river]|on [street]}. In [month] [p.he]
  {planted|sowed} [n 5-60] [v=veg.s] and a row of [f=flower.s]. The [f] {opened|came up} after [w 2-9] weeks,
  but {a [animal]|[w 3-9] [bird.s]} ate {some|most} of the [v]. So [p] {built a fence of [material]|bought a
  [tool]|asked a [job] for advice}. [wx] {Now|In the end} [p.he] gives the [v] to [p.his] [kin].
letter: [date] // Dear [q=person], // thank you for the [adj] [o=thing]. {It arrived on [day]|It came by post
  in [month]}, and {I was very [mood]|my [kin] liked it too}. {Yesterday|On [day]} I [vp], and [p=person]
  [vp]. [wx] {Please write soon.|Will you come to [town] in [month]?|The [o] now stands in the [room].} //
  {Yours|With love|Best wishes}, // [r=person]
dialogue: "{Good morning|Hello|Good evening}, [q=person]," said [p=person]. "Have you seen my [o=thing]?" //
  "{Is it the [color] one|Do you mean the [adj] one}?" asked [q]. "{I saw it in the [room]|I think the [job]
  took it|It was on the table on [day]}." // "Thank you. I need the [o] because {I am going to [town]|my [kin]
  wants it back|it belongs to a [job]}," said [p]. [q] {laughed|nodded|looked [mood]} and [vp].
shop: [p=person] went to the [shop] on [street] to buy {a|one} [o=thing]. "How much is the [o]?" [p.he] asked.
  "It costs [money 40-95]," said the [job], "but the [adj] one is only [money 2-35]." [p] {thought about
  it|looked at both|counted [p.his] money} and {bought the cheaper one|took the first one|went home without
  it}. {On the way home|Later} [p.he] [vp]. {[aside]|}
train: The train to [t=town] leaves {platform [n 1-12]|[town]} at [time] and arrives [w 2-9] hours later. {A
  ticket costs|The fare is} [money 5-90]{, and children pay half|, or less on [day]|}. [p=person] sat {by the
  window|next to a [job]} and looked at the [adj] {fields|hills|houses}. Near [town] the train stopped for [n
  5-50] minutes. [wx] In [t] [p.his] [kin] {was waiting|met [p.him]} {with a [thing]|at the station}.
  {[aside]|}
farm: The [f=surname] farm {near [town]|on the [river]} has [n 5-90] [a=animal.s], [n 10-200] [b=bird.s] and
  {one|a single} [adj] [animal]. {Every [part]|At [time]} [p=person] feeds the [a], and [q=person] {collects
  the eggs|opens the gate|cleans the barn}. Last [season] the [surname] family bought [w 3-9] of the [b] for
  [money 40-900]. {In [month] the [a] are sold.|The farm also sells [fruit.s] and [veg.s].} [wx]
workshop: {In|Behind} the workshop of [p=full] there {is|was always} a smell of [material]. {[p.he] has
  been|For years [p.he] was} a [job], and now [p.he] makes [o=thing.s] from [material] and [material]. First
  [p.he] {takes|uses} a [tool], then a [tool]. {One piece takes [n 2-40] hours|It takes [n 2-9] days to finish
  one}. {People from [town]|[surname] and other customers} pay [money 30-800] for it. [aside]
illness: {On [day]|In [month]} [p=person] had a [i=illness] and {stayed in bed|could not go to school|went to
  the doctor}. Doctor [q=surname] {looked at [p.him] [adverb]|asked many questions} and said, "Take this
  {medicine|tea} {twice|three times} a day for [w 3-9] days." It cost [money 5-60]. [p.his] [kin] brought
  {[dish]|[fruit.s]|a book about [animal.s]}. After [w 2-9] {days|weeks} the [i] was {better|much better}, and
  [p] [vp].
festival: Every [month] the people of [t=town] {hold|celebrate} the {feast|festival} of the [o=thing]. {The
  streets are hung with [flower.s]|Children carry [color] [thing.s]|There is a market with [dish] and
  [drink]}. In [year] [p=full], a [job], won first prize for the {largest [veg]|best [dish]|finest [animal]}.
  {A band plays [instrument] music|The mayor gives a speech} at [time]. {[wx]|About [n 300-900] guests came
  last year.}
history: The {village|town} of [t=town] was founded in [n 1210-1790] by a [job] named [p=full]. {At first|In
  those days} it had only [w 3-20] houses and a {church|mill|market}. In [year] a {fire|flood|storm}
  {destroyed|damaged} the [place], which was rebuilt {of [material]|with money from [town]}. {[surname] Bridge
  was opened in [year].|The railway came in [year].} Today [t] has [n 300-9000] people and is known for its
  [thing.s].
animals: A [a=animal] and a [b=bird] lived {near|beside} the [place]. {All [season]|Every [part]} the [a]
  {slept under|sat beside} the [tree] while the [b] looked for {food|[fruit.s]|straw}. {One day|On [day]}
  [p=person] came with a [thing] and {gave them [dish]|frightened the [b]|sat down}. The [a] {watched [p.him]
  [adverb]|ran into the [place]}, and the [b] {flew over the [place]|made a loud noise}. [wx]
music: [p=full] has played the [i=instrument] since [p.he] was [w 5-20] years old. {Each [day]|On most days}
  [p.he] practices for [n 20-90] minutes {in the [room]|at the [place]}. In [month] [p.he] gave a concert in
  [town] with [q=full], who {plays the [instrument]|sings}. Tickets cost [money 5-45]. One newspaper called
  the music "[adj] and [adj]." {[q] [vp] afterwards.|[aside]}
science: {Water boils at a lower temperature on a high mountain than at the sea.|Sound travels faster in water
  than in air.|The moon gives no light of its own.|Plants need light, water and air to grow.|Iron rusts when
  it is wet.|Ice floats because it is lighter than water.|A magnet pulls iron but not wood.} {To show this|In
  class}, [p=person] took a [thing], a [adj] [o=thing] and [n 50-900] grams of {salt|ice|sand|[material]}.
  {After [n 2-50] minutes|The next [part]} the [o] was {wet|warm|[n 2-9]% heavier|covered with drops}.
  "{Why|How} {did that happen|is that possible}?" asked [q=person]. {[p.he] wrote the result in a
  notebook.|They repeated the test on [day].} [aside]
directions: To {reach|find} the [g=place], {leave|start from} the [s=place] and {walk|go} {straight
  on|north|south} {for [n 100-900] meters|along [street]}. {Turn left|Turn right} at the [place], cross
  {[street]|the [river]} and pass a [color] {house|gate|wall}. The [g] is {on your left|on your right|next to
  a [shop]}. {The walk takes [n 5-40] minutes.|You can also take bus number [n 2-60].} If you see a [adj]
  [tree], you have gone too far. {[aside]|}
news: {TOWN NEWS|LOCAL NEWS}, [date]. {A [job]|[p=full], a [job],} from [town] {found|returned|gave away} a
  [color] [o=thing] {worth|that had cost} [money 200-9000] on [day]. "I was [mood]," the finder said.
  {Police|The owners} {thanked|praised} the finder, and the [o] is now in the [place]. {In other news, the
  [place] in [town] will be closed until [month].|The [place] opens at [time] on [day].} {Prices of [fruit.s]
  rose by [n 2-19]% in [month].|[wx]}
diary: [day], [date]. {Today|This [part]} I [vp]. {Then|Later} I [vp] with [p=person], who was [mood]. {[p.he]
  told me that [q=person] [vp].|We laughed about [q=person], who [vp].} [wx] I am {[mood] but [mood]|a little
  [mood]} tonight. {Tomorrow I must write to my [kin].|Spent: [money 2-50].}
instructions: How to {clean|paint|mend|store} a [o=thing]: (1) Put the [o] on {a table|the floor} in the
  [room]. (2) {Rub|Brush} it [adverb] with {a soft cloth|a [tool]} and {warm water|a little [material]|oil}.
  (3) Wait [n 10-90] minutes. (4) {If|When} the [o] is {still [color]|dry}, {repeat step 2|rub it again|leave
  it near a window}. {Do not use [drink].|Keep children and [animal.s] away.} {The whole job takes about [w
  2-9] hours.|A good [tool] costs about [money 8-60].}
person: [p=full] {is|was} a [trait] and [trait] [job] {from [town]|of [n 25-80]}. [p.he] had {[color]
  hair|gray eyes|large hands} and {always|often|never} wore a [color] {coat|hat|scarf}. {People said|Everybody
  knew} that [p.he] once [vp]. {On [day]s|In the [part]} [p.he] could be {seen|found} {at the [place]|in the
  [room]}. {[p.his] [mate], [q=person], was more [trait].|[p.he] liked [dish] and [drink].} [aside]
house: The house {on|at the end of} [street] is [adj] and has [w 3-12] rooms. {The [room] is painted
  [color]|The roof is made of [material]}, and in the [r=room] there {is|stands} a [adj] [o=thing]. [p=full]
  {bought it|built it} in [year] for [money 9000-90000]. {From the window you see the [river]|A [tree] grows
  beside the door}. {In [season]|At night} the [r] is {cold|full of light|quiet}. {Nobody may touch the
  [o].|[p] [vp] there.} [aside]
river: The [r=river] {rises|begins} in the hills {near|above} [town] and is [n 20-900] kilometers long. It
  {flows|runs} {past|through} [town] and [town] {before it reaches|to} the sea. {In [month]|Each [season]} the
  water is {high|low|brown}, and {boats|[bird.s]|fishers} {come|gather} near the [place]. {A bridge of
  [material] was built in [year].|[p=full] wrote a song about it.} {Along its banks grow [flower.s] and
  [tree.s]|[animal.s] drink there}. [wx]
fable: {Once|Long ago} a [a=animal] {met|saw} a [b=bird] that had {found|stolen} a [o=thing]. "{Give me the
  [o]|Let me hold the [o]}," said the [a], "and I will give you {[w 2-9] [fruit.s]|my place under the
  [tree]}." The [b] was [trait] and {agreed|refused}. {Then came the [season]|Winter came}, and the [a] {had
  nothing to eat|lost its way|fell into the [river]}. {Only the [b] helped it.|The [b] kept the [o] in the
  [tree].} {The lesson is this: |}[moral]
list: {Things to bring|Shopping list|Items in the [room]} for [day], [date]: [n 2-12] [fruit.s], [n 2-12]
  [veg.s], [w 2-9] [thing.s], one [tool], [drink] ([money 2-9]), [dish] ([money 3-20]). // Total: [money
  20-90]. // {Ask [p=person] for the [thing]|[p=person] pays [money 5-19]}. {[p.he] will be at the [place] at
  [time].|[p.he] [vp] last time.}
dates: {Dates to remember|Calendar of the [place]}: // [month] [n 1-28], [year]: [full] born in [town]. //
  [date]: {the [place] opened|first [sport] match|great flood}. // [date]: [full] {became mayor|left for
  [country]}. // {[date]: new roof, cost [money 900-9000].|Closed on [day] and [day].}
numbers: {Count|Results} of the {census|survey} in [t=town], [year]: [w 2-9] {schools|mills}, [n 20-99]
  [job.s], [n 100-999] houses, [n 40-600] [animal.s] and [n 100-900] [bird.s]. // {That is [n 2-40]% more than
  in [year].|In [year] there were only [n 10-90] houses.} {[p=full] made the list.|The list was kept in the
  [place].} Each page cost [money 1-9].
prices: Prices {at the [shop] of [surname] & [surname]|in the [town] market} ([month] [year]): [fruit.s]
  [money 1-9] a kilo, [veg.s] [money 1-9] a kilo, a [thing] [money 5-80], a [thing] from [money 5-80] to
  [money 90-200], [tool] {or [tool]|} [money 6-50]. // {Children pay [n 10-50]% less.|Open from [n 7-11]:00 to
  [n 14-20]:30.} {[p=person] spent [money 10-90] there on [day].|No sale on [day].}
sea: The {ship|ferry} "[female]" left [town] {on [date]|at [time]} with [n 20-300] {people|passengers} and a
  load of {[material]|[fruit.s]|[thing.s]}. Captain [c=surname] was [trait]. {On the
  {third|fourth|sixth|ninth} day|Near the coast of [country]} {a storm broke the mast|fog came down}.
  [p=person], the [job], [adverb] {held the rope|called for help}. {After [w 2-9] hours|By [part]} the sea was
  {calm|quiet} again, and [c] [vp] in the harbor. [wx]
work: [p=full] works {as a [job]|in an office|for a [job]} in [town]. {The work begins|[p.his] day starts} at
  [n 5-9]:15 and ends at [n 14-20]:45. {[p.he] earns [money 300-900] a week|The pay is [money 300-900] a
  week}, and {there are [w 2-9] weeks of holiday|every [day] is free}. {Last [month]|In [year]} [p.he] [vp]
  and [vp]. "{I am [mood] here|It is [adj] work}," [p.he] says. [aside]
argument: {Should the [place] in [town] be {closed|moved|sold}?|Is a [vehicle] better than a [vehicle]?}
  [p=person] thinks {so|not}, because {it costs [money 900-9000] a year|it is too [adj]|nobody from [town]
  uses it}. [q=person] {does not agree|has another view}. "{My [kin] went there every [day]|We need it in
  [season]}," [q.he] {said|answered}. {They talked until [time].|The mayor, [surname], listened [adverb].} In
  the end [n 10-49]% {voted for it|said yes}. [aside]
party: [p=person] was [w 4-60] years old on [date]. {[p]'s [kin] gave [p.him]|From [p.his] [kin] [p.he] got} a
  [adj] [o=thing], and [q=person] {brought|came with} {[dish]|a [color] cake} with [fruit.s]. {Everybody
  sang|They played [sport]|Somebody played the [instrument]}. [q] [vp], but [p] only looked at the [o]. {At
  [time] the guests went home.|[wx]} {[p.he] was [mood].|It was a [adj] day.}
notice: {NOTICE|PLEASE NOTE}: the [g=place] (on [street]) will be {closed|open} from [date] {for [w 2-9]
  weeks|until the work is done}. {Tickets: adults [money 5-30], children [money 1-5]|Entry costs [money
  1-20]}. {Dogs|Bicycles|Large bags} are {not allowed|welcome} in the [g]. {Lost: one [color] [thing]. Reward:
  [money 5-90]. Call [full].|Wanted: a [trait] [job] for [n 2-20] hours a week.} {For questions ask [full],
  room [n 1-90].|The [job] is there on [day] from [time].}
"""

READING = """
buy: {On [d=day]|Last [d=day]} [p=person] bought [x=w 2-20] [o=thing.s] and [q=person] bought [y=w 2-20]
  [f=fruit.s] in [t=town]. [p] paid [m=money 5-90], and [q] paid [k=money 5-90]. [aside] {Q: {How much did [p]
  pay|What did [p] pay}? A: [m]|Q: How much did [q] pay? A: [k]|Q: Who bought the [f]? A: [q]|Q: Who bought
  the [o]? A: [p]|Q: How many [o] did [p] buy? A: [x]|Q: In which town was it? A: [t]|Q: On what day was it?
  A: [d]}
owner: {There were two boxes in the [r=room]|Two boxes stood in the [r=room]}. The [c=color] box {belonged
  to|was owned by} [p=person], and the [e=color] box {belonged to|was owned by} [q=person]. In the [c] box was
  a [o=thing], in the [e] box a [f=thing]. [aside] {Q: Who owned the [c] box? A: [p]|Q: Who owned the [e] box?
  A: [q]|Q: What was in the [e] box? A: a [f]|Q: What was in the [c] box? A: a [o]|Q: Which box held the [f]?
  A: the [e] box|Q: Where were the boxes? A: in the [r]}
jobs: [p=full] is a [j=job] in [t=town], and [q=full] is a [k=job] in [u=town]. {They met in [y=n 1995-2021]
  at a concert|They have been friends since [y=n 1995-2021]}. {[p.he] [vp] last week.|[wx]} {Q: What is the
  job of [p]? A: [j]|Q: What is the job of [q]? A: [k]|Q: Who is the [j]? A: [p]|Q: Who is the [k]? A: [q]|Q:
  Where does [q] work? A: [u]|Q: Where does [p] work? A: [t]|Q: Which year is named? A: [y]}
meeting: {Dear [q=person],|[q=person],} the meeting {about|on} [s=subject] is {moved from [e=day] to
  [d=day]|not on [e=day] but on [d=day]}. {It begins at [t=time] and takes place in|Please come at [t=time]
  to} the [g=place]. Bring [m=money 2-40] {for the tickets|for lunch} and a [o=thing]. // [p=full] // {Q: When
  does the meeting begin? A: [t]|Q: On which day is the meeting? A: [d]|Q: Where is the meeting? A: the [g]|Q:
  Who wrote this? A: [p]|Q: What is the meeting about? A: [s]|Q: How much money is needed? A: [m]}
born: [p=full] was born on [d=date] in [t=town]. {[p.his] [mate], [q=full], was born on [e=date] in
  [u=town].|[q=full] was born on [e=date] in [u=town].} [p] [vp], and [q] [vp]. {Q: When was [p] born? A:
  [d]|Q: When was [q] born? A: [e]|Q: Where was [q] born? A: [u]|Q: Where was [p] born? A: [t]|Q: Who was born
  in [u]? A: [q]|Q: Who was born on [d]? A: [p]}
duty: At the [g=place], {[p=person] must|it is the duty of [p=person] to} {[x:feed the animals]feed the
  animals|[x:open the gate]open the gate|[x:light the fire]light the fire} and {[q=person] must|[q=person] has
  to} {[y:sweep the floor]sweep the floor|[y:lock the door]lock the door|[y:count the money]count the money}.
  {Both work until [t=time].|They start at [t=time].} [aside] {Q: Who must [x]? A: [p]|Q: Who must [y]? A:
  [q]|Q: What time is named? A: [t]|Q: What must [q] do? A: [y]|Q: What must [p] do? A: [x]}
rule: {In the house of [p=full]|At the [g=place] of [t=town]} {[a=animal.s] {are allowed[x:Yes]|are
  welcome[x:Yes]|may come in[x:Yes]|are not allowed[x:No]|must stay outside[x:No]|are forbidden[x:No]}},
  {and|while|but} [b=bird.s] {are allowed[y:Yes]|may come in[y:Yes]|are not allowed[y:No]|must stay
  outside[y:No]}. The rule was made in [z=year]. [aside] {Q: Are [a] allowed? A: [x]|Q: May [a] come in? A:
  [x]|Q: Are [b] allowed? A: [y]|Q: May [b] come in? A: [y]|Q: When was the rule made? A: [z]}
did: {On [day]|In [month]} [p=person] [vp]. [q=person] {did the same[x:Yes]|did so too[x:Yes]|went
  along[x:Yes]|did not[x:No]|stayed at home[x:No]|refused to go[x:No]}. {Then|Later} [p]
  {lost[y:lose]|found[y:find]|sold[y:sell]} a [o=thing] in [t=town], and [q] saw {a [a=animal]|[a=animal.s]}.
  {Q: Did [q] do the same as [p]? A: [x]|Q: What did [p] [y]? A: a [o]|Q: In which town was [p]? A: [t]|Q: Who
  had the [o]? A: [p]}
trip: The {bus|train|boat} to [t=town] leaves at [a=time] and costs [m=money 5-60]. The one to [u=town] leaves
  at [b=time] and costs [k=money 5-60]. {[p=person] wants to go to [u].|[p=person] lives in [t].} {[wx]|[p.he]
  [vp].} {Q: When does the one to [u] leave? A: [b]|Q: When does the one to [t] leave? A: [a]|Q: How much is
  the trip to [t]? A: [m]|Q: How much is the trip to [u]? A: [k]|Q: Who is named? A: [p]}
lend: [p=person] lent [q=person] a [o=thing] and [m=money 20-900] on [d=date]. {[q] promised to|[q] had to}
  give {everything|it all} back {within [k=n 5-90] days|after [k=n 5-90] days}. {The [o] was [c=color].|It was
  a [c=color] [o].} [aside] {Q: Who lent the [o]? A: [p]|Q: Who got the [o]? A: [q]|Q: How much money was
  lent? A: [m]|Q: When was it lent? A: [d]|Q: After how many days must it be given back? A: [k]|Q: What color
  was the [o]? A: [c]}
prize: In the [s=sport] contest in [t=town], [p=full] came first and won [m=money 90-900]; [q=full] came
  second and won [k=money 10-80]. {[r=full] was last|Nobody expected [r=full] to be last}, {although [r.he]
  was [trait]|because [r.he] was [mood]}. [wx] {Q: Who came first? A: [p]|Q: Who came second? A: [q]|Q: Who
  was last? A: [r]|Q: How much did the winner get? A: [m]|Q: What did [q] win? A: [k]|Q: Which sport was it?
  A: [s]}
rent: [p=full] {lives|rents a room} in the house of [q=full] on [t=street]. {[p.he] pays|The rent is} [m=money
  90-900] a month, due on {Monday[x:Monday]|Friday[x:Friday]|the first day[x:the first day]|the last day[x:the
  last day]}. The house has [n=w 3-12] rooms. [aside] {Q: Who owns the house? A: [q]|Q: Who pays rent? A:
  [p]|Q: How much is the rent? A: [m]|Q: When is it due? A: [x]|Q: How many rooms are there? A: [n]|Q: On what
  street is the house? A: [t]}
"""

# -----------------------------------------------------------------------------
# Law. "== kind / heading" opens a type of clause ("*": of any contract), "-" one phrasing of it, and
# "? question = answer ? ..." the questions that every phrasing answers. [X] and [Y] are the parties' roles,
# [A] and [B] their names; [D] and [E] are the roles in random order, so that a duty may fall on either.

KINDS = {  # kind: (names of the document, pairs of roles, who can be A, who can be B)
    "lease": ("Lease|Lease Agreement", "Lessor,Lessee|Landlord,Tenant", "party", "party"),
    "sale": ("Agreement|Sales Contract", "Seller,Buyer|Vendor,Purchaser", "company", "party"),
    "service": ("Agreement|Contract", "Client,Contractor|Customer,Provider", "party", "company"),
    "job": ("Agreement|Contract", "Employer,Employee|Company,Executive|Company,Employee", "company", "full"),
    "loan": ("Loan Agreement|Note", "Lender,Borrower|Creditor,Debtor", "party", "party"),
    "license": ("License|License Agreement", "Licensor,Licensee|Owner,User", "party", "company"),
    "land": ("Deed|Agreement|Contract", "Grantor,Grantee|Transferor,Transferee", "party", "party"),
    "partner": ("Agreement", "Managing Partner,Silent Partner", "full", "party"),
    "will": ("Will", "Executor,Trustee", "full", "full"),
    "power": ("Power of Attorney", "Principal,Agent", "full", "full"),
    "statute": ("Act|Code|Chapter", "Department,Licensee|Board,Operator|Agency,Owner", "full", "full"),
}
CONTRACTS = ["lease", "sale", "service", "job", "loan", "license", "land", "partner"]

CLAUSES = """
== * / Parties
- This [doc] is made {on|as of} [dd=date] {between|by and between} [A], {as|hereinafter called|referred to as}
  the [X], and [B], {as|called|referred to as} the [Y]{, who agree as follows|, on the terms below|}.
- [B], the [Y], and [A], the [X], {sign|enter into|conclude} this [doc] {on|with effect from} [dd=date]{ in
  the city of [town]|}{ and replace their agreement of [date]|}.
- {Under|For the purposes of} this [doc], dated [dd=date], the [X] is [A] and the [Y] is [B]{, both of
  [town]|, whose office is at [address]|}.
? Who is the [X] = [A] ? Who is the [Y] = [B] ? {On what date was the [doc] made|What is the date of the
  [doc]} = [dd]
== * / Governing Law
- This [doc] {is|shall be} governed by {and construed under|and interpreted in accordance with|} the laws of
  [s=state]{, without regard to its rules on conflict of laws|}, and {any suit shall be brought|the parties
  shall bring any action} {only in|in} the courts sitting in [c=town].
- {The law of [s=state] applies|The laws of [s=state] apply} to this [doc] and to {every|any} claim {arising
  from it|connected with it}{, even if the [D] moves to [state]|}. {The courts of [c=town] have|Venue lies in
  [c=town], whose courts have} {exclusive|sole} jurisdiction.
- {Each party submits|The [X] and the [Y] submit} to the courts of [c=town]; {this [doc] and all disputes
  under it are|all questions of validity and performance are} {decided|determined} under the law of
  [s=state][subject_to].
? {Which state's law governs|The law of which state applies to} the [doc] = [s] ? {In which place must a suit
  be brought|The courts of which place have jurisdiction} = [c]
== * / Arbitration
- {Any|Every} {dispute|controversy} {arising out of|relating to} this [doc] shall be {settled|finally
  resolved} by {[w=one] arbitrator|[w=w 2-5] arbitrators} sitting in [c=town]. The [D] shall {advance|pay} the
  fees of the arbitration{, and the award binds the [E] as well|; the [E] bears only its own costs}.
- If the parties fail to {settle|resolve} a dispute within [days 10-60], {either of them|the [E]} may refer it
  to arbitration in [c=town] before {[w=w 2-5] arbitrators|[w=one] arbitrator}. The costs {are borne|shall be
  borne} by the [D]{ and not by the [E]|, and the [E] has to pay nothing}.
? {Where does the arbitration take place|In which place do the arbitrators sit} = [c] ? {Who|Which party}
  {pays for|bears the costs of} the arbitration = the [D] ? How many arbitrators are there = [w]
== * / Notice
- {Notices|All notices} under this [doc] {must|shall} be in writing and {sent|delivered} by {registered
  mail|courier|certified mail} to [address]. A notice {takes effect|is deemed received} [d=days 2-14] after it
  is {posted|sent}. Notice by electronic mail {is valid[yn:Yes]|is sufficient[yn:Yes]|is not valid[yn:No]|has
  no effect[yn:No]}.
- The [D] shall give notice to the [E] at [address], {by hand|by courier|by registered mail}{, and a copy to
  [full]|}; it {may also[yn:Yes]|may not[yn:No]} be given by electronic mail. {Such a notice|It} is
  {effective|deemed given} [d=days 2-14] after dispatch.
? {May notice be given|Can a party give notice} by electronic mail = [yn] ? {After what time|How long after
  sending} does a notice take effect = [d]
== * / Assignment
- {Neither party may[yn:No]|The [D] may not[yn:No]} assign {this [doc]|any right under this [doc]} without the
  {prior|express} written consent of the other{, which shall not be unreasonably withheld|}. {A request for
  consent|Any such request} must be answered within [d=days 5-30].
- {Either party may[yn:Yes]|The [D] and the [E] may each[yn:Yes]} {freely assign|transfer} this [doc] {without
  the consent of the other|and needs no consent to do so}, {provided that|but} written notice of the
  {assignment|transfer} is given within [d=days 5-30]{ and the assignee assumes all duties|}.
? {May a party assign the [doc] without consent|Is assignment of the [doc] without consent allowed} = [yn] ?
  {What period is stated in the assignment clause|Within what period must the request or notice be dealt with}
  = [d]
== * / Indemnity
- The [D] [shall] indemnify{, defend and hold harmless| and hold harmless|} the [E] {against|from} {all|any}
  {claims, losses and expenses|damages, fines and costs} {arising from|caused by} {its negligence|any breach
  of this [doc]|the acts of its agents}, {up to|but not more than} [m=money 5000-900000]{, unless the [E]
  itself was grossly negligent|}.
- {If a third party sues the [E]|In case of a claim against the [E]} {because of|on account of} {a defect|any
  act of the [D]|a breach of this [doc]}, the [D] {bears|shall bear} {the loss|all reasonable costs}{,
  including attorneys' fees,|} to a {limit|maximum} of [m=money 5000-900000].
? {Which party|Who} must indemnify the other = the [D] ? {What is the limit of|Up to what amount is} the
  indemnity = [m]
== * / Confidentiality
- The [D] shall keep {secret|confidential} all {business records|technical data|price lists|customer lists}
  {disclosed|received} under this [doc] {during its term and|} for [p=years 2-10] {after it ends|thereafter}{,
  except information that is public|}. {The [D] may[yn:Yes]|The [D] may not[yn:No]} disclose them to {its|the}
  auditors.
- {For|During} [p=years 2-10] after {the end|termination} of this [doc], the [D] may not reveal {any trade
  secret|any confidential information} of the [E] to {third parties|anyone}; disclosure to auditors is
  {permitted[yn:Yes]|likewise prohibited[yn:No]|also forbidden[yn:No]|an exception and is allowed[yn:Yes]}.
? {For how long after the end of the [doc] must the information be kept secret|How long does the duty of
  secrecy last} = [p] ? {Which party|Who} must keep the information secret = the [D] ? May the information be
  disclosed to auditors = [yn]
== * / Termination for Cause
- {If|Where} the [D] {commits a material breach|materially breaches this [doc]} and {fails to cure it|does not
  remedy it} within [d=days 10-60] after {written notice|receiving notice}, the [E] may terminate this [doc]
  {at once|by a second notice}{ and claim damages|}[subject_to].
- The [E] may {end|terminate} this [doc] for cause if the [D] {becomes insolvent|ceases to do business} or
  {leaves|allows} a breach {uncured|to continue} for [d=days 10-60] after notice{. Section [n 2-30] survives
  such termination|; sums already due remain payable}.
? {How long is the cure period|Within what time must a breach be cured} = [d] ? {Which party|Who} may
  terminate {for cause|because of a breach by the other} = the [E]
== * / Force Majeure
- {Neither party|No party} is {liable|responsible} for {delay|a failure to perform} caused by {fire, flood or
  war|strikes, storms or acts of government|epidemic, earthquake or embargo}{ or another event beyond its
  control|}. {If the event lasts|Should this continue for} more than [d=days 20-90], the [D] may
  {cancel|terminate} this [doc]. {Payment of money is not excused[yn:No]|Payment of money is excused as
  well[yn:Yes]}.
- {Performance|Any duty} is suspended {while|as long as} {an act of God|a natural disaster|riot or war}
  {prevents it|makes it impossible}. {This applies[yn:Yes]|This does not apply[yn:No]} to the duty to pay
  money. After [d=days 20-90] {of such suspension|} the [D] may {withdraw|terminate} by notice to the [E].
? Does force majeure excuse the payment of money = [yn] ? After how long may the [doc] be ended because of
  force majeure = [d]
== * / Limitation of Liability
- {In no event shall|Under no circumstances shall} the {total|aggregate} liability of the [D] {under|arising
  from} this [doc] exceed [m=money 5000-900000]. {Lost profits are not recoverable[yn:No]|Lost profits are
  recoverable within that limit[yn:Yes]|The [E] may also recover lost profits[yn:Yes]|The [E] may not claim
  lost profits[yn:No]}[subject_to].
- The [D] is liable to the [E] only up to [m=money 5000-900000] {for each event|in any calendar year},
  {whether in contract or in tort|on whatever legal ground}. This limit {covers[yn:Yes]|does not make
  recoverable[yn:No]|includes[yn:Yes]|excludes any claim to[yn:No]} lost profits{ and does not apply to
  fraud|}.
? {What is the limit of the liability of the [D]|To what amount is the [D] liable} = [m] ? {Can lost profits
  be recovered|Are lost profits recoverable} = [yn]
== * / Insurance
- The [D] shall {maintain|carry|keep in force} {at its own expense|} {liability|fire|property} insurance
  {of|with a limit of} {at least|not less than} [m=money 50000-900000] {per occurrence|for each claim} with {a
  company licensed in [state]|a reputable insurer}, and {show|deliver} the policy to the [E] within [d=days
  5-30] {after signing|after request}.
- {Throughout the term|As long as this [doc] is in force}, insurance {against fire and theft|against claims of
  third parties} in the amount of [m=money 50000-900000] is {to be taken out|to be maintained} by the [D]. The
  [E] {must receive|is entitled to} a certificate within [d=days 5-30].
? {Which party|Who} must {carry|maintain} insurance = the [D] ? {What amount of insurance is required|How much
  insurance must be maintained} = [m] ? Within what period must proof of insurance be given = [d]
== * / Severability
- {If|Where} {a court|any tribunal} {finds|holds} {any provision|a part|[section]} of this [doc]
  {invalid|void|unenforceable}, the {remaining provisions|rest} {shall continue in force|remain valid}{ and
  the parties shall replace it by a valid term close to its purpose|}[subject_to].
- The {invalidity|illegality} of one {clause|section} of this [doc] does not {affect|impair} the
  {others|remainder}{, and the court in [town] may reduce it to the extent the law of [state] allows|}.
== * / Amendment
- {No amendment|No change} of this [doc] is {valid|binding} unless {made in writing and signed by|it is signed
  by} {both parties|the [X] and the [Y]}{, and [section] may be changed only before a notary|}. {An oral
  change is void[yn:No]|Oral promises change nothing[yn:No]}.
- This [doc] may be {amended|changed|modified} {by the parties|by agreement of the [D] and the [E]} {orally or
  in writing[yn:Yes]|in any form, even orally[yn:Yes]|only in writing[yn:No]|only by a signed
  writing[yn:No]}{, with effect from the date on which they agree|}[subject_to].
? {Can the [doc] be changed orally|Is an oral amendment valid} = [yn]
== * / Entire Agreement
- This [doc]{, with its schedules,|, together with [section],|} {is|constitutes} the {entire|whole} agreement
  {of|between} the [X] and the [Y] and {replaces|supersedes} {all|any} {earlier drafts, letters and
  promises|prior understandings}{, in particular the letter of [date]|}.
- {Nothing said|No statement made} before {the date of this [doc]|[date]} binds the [D]{ or the [E]|},
  {for|since} this [doc] {contains|sets out} {everything|all} that the parties {have agreed|agreed upon}{
  about [section]|}.
== * / Counterparts
- This [doc] may be {signed|executed} in {any number of|[w 2-6]} counterparts, each of which is an original{,
  and all of which are one instrument|}. {A signature sent by fax or electronic mail is
  valid[yn:Yes]|Electronic signatures are accepted[yn:Yes]|Electronic signatures are not accepted[yn:No]|Only
  a signature by hand in ink is accepted, not an electronic one[yn:No]}.
- The [D] {keeps|receives} [w=w 2-5] {originals|signed copies} of this [doc], the [E] {keeps|receives} {one|a
  single one}; {an electronic signature {suffices[yn:Yes]|is as good as one by hand[yn:Yes]|does not
  suffice[yn:No]|has no effect[yn:No]}}.
? {Is an electronic signature accepted|May the [doc] be signed electronically} = [yn]
== * / Audit
- {Once a year|Upon notice of [days 5-30]|Twice in a year}, the [D] may {inspect|audit|examine} the
  {books|records|accounts} of the [E] {that relate to|concerning} this [doc]. {If the audit shows|Where it
  reveals} {an error|an underpayment} of more than [p=pct 2-15], {the [E]|the audited party} shall {bear|pay}
  its cost. Records are kept for [y=years 2-10].
- The [E] keeps {full|accurate|complete} {records|accounts} for [y=years 2-10] and {opens them|makes them
  available} to the [D], which may audit them {during business hours|on any working day}; a difference of more
  than [p=pct 2-15] {must be made good|is corrected} {at once|with interest}.
? {Which party|Who} may audit the {books|records} = the [D] ? How long must records be kept = [y] ? {What
  difference has consequences in an audit|From what percentage does an error in the audit count} = [p]
== lease / Rent
- The [Y] [shall] pay {to the [X]|} {a monthly rent of|as rent for each month} [m=money 400-6000]{, in
  advance,|} {on|not later than} the [d=nth] day of {each|every} month{, without any deduction| by bank
  transfer|}[subject_to].
- {Rent|The monthly rent} for the {premises|[premises]} is [m=money 400-6000]. {It falls due|It is payable} on
  the [d=nth] day of {each|the} month at {the office of the [X]|[address]}{, and a receipt shall be given|}.
? {How much is|What is} the monthly rent = [m] ? On {which|what} day of the month is {rent|the rent} due = [d]
== lease / Deposit
- {On signing|Before moving in}, the [Y] {pays|shall pay} a {security|} deposit of [m=money 400-9000]. The [X]
  [shall] {return|refund} it within [d=days 10-60] after the end of the {lease|term}, less {the cost of
  repairs|any unpaid rent}. The deposit {bears interest[yn:Yes]|bears no interest[yn:No]}.
- The [X] {holds|has received} [m=money 400-9000] as security {for the duties of the [Y]|against damage},
  {with interest at [pct 2-5] a year[yn:Yes]|without any interest[yn:No]}, {to be repaid|and shall pay it
  back} [d=days 10-60] after the keys are {returned|handed over}.
? {How much is|What is the amount of} the {security |}deposit = [m] ? {Within what time|When after the end}
  must the deposit be returned = [d] ? Does the deposit bear interest = [yn]
== lease / Repair
- The [D] shall {keep|maintain} the {roof, walls and pipes|heating and plumbing|doors and windows} {in good
  repair|in good order} at its own {cost|expense}{, except damage caused by the [E]|}. Repairs {shall
  begin|must start} within [d=days 3-30] after notice{ from the [E]|}.
- {Repairs|All necessary repairs} of the [premises] are {made|carried out} {and paid for|} by the [D],
  {within|not later than} [d=days 3-30] {after|from} {the report of a defect|written notice}. The [E] {need
  not contribute|shall merely give access}.
? {Which party|Who} must {make|pay for} {repairs|the repairs} = the [D] ? Within what period must repairs
  {begin or be made|be dealt with} = [d]
== lease / Subletting
- The [Y] {may[yn:Yes]|may not[yn:No]|is free to[yn:Yes]|shall not[yn:No]} {sublet|sublease} {the premises|the
  [premises]|any part of the premises} without the {prior|written} consent of the [X]{, and a subtenant may
  not stay longer than [months 2-11]|}. The number of occupants is limited to [w=w 2-9].
- {No consent of the [X] is needed[yn:Yes]|The written consent of the [X] is needed[yn:No]|The [X] must first
  agree in writing[yn:No]|The [X] need not be asked[yn:Yes]} if the [Y] wishes to {sublet|sublease} the
  [premises]; {in every case|however,} {no more than|not more than} [w=w 2-9] persons may {live|stay} there.
? {May the [Y] sublet without consent|Can the [Y] sublease without the consent of the [X]} = [yn] ? How many
  {persons|occupants} are allowed = [w]
== lease / Term and Use
- The {lease|term} of the [u=premises] {begins|starts} on [b=date] and {runs for|lasts} [p=months 6-48]. The
  [Y] shall use it {only|solely} {as a place of business|for lawful purposes|as described in [section]};
  {animals are allowed[yn:Yes]|animals may be kept[yn:Yes]|animals are not allowed[yn:No]|no animals may be
  kept[yn:No]}.
- {From|Starting on} [b=date], the [X] lets {to the [Y]|} the [u=premises] at [address] for {a term of|}
  [p=months 6-48]. The [Y] {may[yn:Yes]|may not[yn:No]} keep animals there{ and shall obey the house rules|}.
? {How long is the term|For what period is the lease made} = [p] ? {When does the {lease|term} begin|On what
  date does the {lease|term} begin} = [b] ? {May animals be kept|Are animals allowed} = [yn] ? What is leased
  = [u]
== lease / Utilities and Entry
- {Charges for|The cost of} {water|electricity|gas|heating} {are|shall be} paid by the [D]{ and taxes by the
  [E]|; the [E] pays nothing for them}. The [X] may enter the premises {for inspection|to inspect} after
  [d=hours] notice{, but not on Sundays|}.
- The [D] pays for {water and gas|electricity|heating and light}{, while the [E] pays the property tax|}.
  {With|After} notice of [d=hours]{, the [X] may inspect the premises|, the [X] may come in}{ between [n 8-11]
  and [n 12-18] o'clock|}.
? {Which party|Who} pays for {the utilities|water, gas, electricity or heating} = the [D] ? {How much notice
  is needed before entry|What notice must be given before an inspection} = [d]
== sale / Price
- The [X] sells and the [Y] buys [q=n 20-900] {units of|} [g=goods] {for a total price of|at a price of}
  [m=money 900-90000]{, taxes included|, plus sales tax|}. {The price is payable|Payment is due} within
  [d=days 5-60] {after the invoice|after delivery}.
- {The price of|For} the [g=goods] ([q=n 20-900] in number) {is|the [Y] shall pay} [m=money 900-90000],
  {due|to be paid} within [d=days 5-60] {of the invoice date|from the date of the invoice}{ to the account
  named in [section]|}.
? {What is sold|Which goods are sold} = [g] ? {What is the price|How much must the [Y] pay} = [m] ? Within
  what period must the price be paid = [d]
== sale / Delivery and Risk
- {Delivery|The goods} shall {take place|be delivered} at [t=town] {on or before|not later than} [b=date].
  {Freight|The cost of transport} is {paid|borne} by the [D]{, not by the [E]|}. {Title|Risk of loss}
  {passes|shall pass} to the [Y] {on delivery|when the carrier takes the goods}.
- The [X] [shall] {ship|deliver} the goods to [t=town] by [b=date]. The [D] {pays|shall pay} the freight{ and
  the [E] the insurance of the load|, the [E] the unloading}. For each {week|day} of delay {the price
  falls|the [Y] may deduct} {by|an amount of} [money 50-900].
? {Where must the goods be delivered|To what place are the goods delivered} = [t] ? By what date must the
  goods be delivered = [b] ? {Which party|Who} pays the {freight|cost of transport} = the [D]
== sale / Inspection and Returns
- The [Y] {may|shall} {inspect|examine} the goods within [d=days 3-30] after {arrival|delivery} and {must
  report|shall report} {any defect|defects} {in writing|without delay}. Defective goods {may be
  returned[yn:Yes]|can be sent back[yn:Yes]|may not be returned[yn:No]|cannot be sent back[yn:No]}{, and
  [section] applies|}{; the [X] pays a credit of [pct 5-40]|}.
- {Unless the [Y] objects|If the [Y] makes no complaint} within [d=days 3-30] {of delivery|after delivery},
  the goods are {deemed accepted|accepted}. The [Y] {has the right[yn:Yes]|has no right[yn:No]} to return
  {defective|faulty} goods{, whatever the invoice says|}.
? Within what period must the goods be inspected or refused = [d] ? {May defective goods be returned|Can the
  [Y] return defective goods} = [yn]
== sale / Warranty
- The [X] {warrants|guarantees} that the [goods] {are free of defects|conform to the sample} for [p=months
  3-36] {from delivery|after the sale}. {In case of a defect|If they are not}, the [X] shall {repair or
  replace them|refund the price}{, at the choice of the [Y]|}. The warranty {covers[yn:Yes]|does not
  cover[yn:No]} normal wear.
- {The warranty lasts|A warranty is given for} [p=months 3-36] {from the invoice date|after delivery}{ and is
  limited to [money 900-9000]|}. Normal wear is {included[yn:Yes]|excluded[yn:No]|also covered[yn:Yes]|not
  covered[yn:No]}. {ALL OTHER WARRANTIES ARE EXCLUDED.|No other warranty, express or implied, is made.|The [X]
  sells no goods "as is".}
? {How long is the warranty|How long does the warranty last} = [p] ? {Does the warranty cover|Is there a
  warranty for} normal wear = [yn]
== service / Services and Fees
- The [Y] [shall] {perform|provide} [s=service] services for the [X] {at [address]|with due care|as described
  in [section]}, {for a fee of|at a rate of} [m=money 30-300] {per hour|an hour}{, not counting travel|}.
  {Invoices are|Each invoice is} {payable|due} within [d=days 10-60].
- {For|In return for} [s=service] services the [X] pays [m=money 30-300] {for each hour|per hour}{ up to [n
  20-160] hours a month|}. {The [Y] sends|Under this [doc] the [Y] sends} {an invoice every month|monthly
  invoices}, {payable|to be paid} within [d=days 10-60].
? {What services are provided|What kind of services must the [Y] provide} = [s] ? {What is the hourly fee|How
  much is paid per hour} = [m] ? Within what period must invoices be paid = [d]
== service / Termination for Convenience
- {Either party may[yn:Yes]|Only the [D], and not the [E], may[yn:No]} {terminate|end} this [doc] {at any
  time|for any reason}{ and without cause|} {on|by giving} written notice of [d=days 10-90]{; work done before
  that day is paid for|}[subject_to].
- The [D] may {cancel|terminate} the services without cause {on|upon} {prior|written} notice of [d=days
  10-90], {and so may the [E][yn:Yes]|but the [E] may not[yn:No]|a right which the [E] has as well[yn:Yes]|a
  right which the [E] does not have[yn:No]}.
? {May the [E] terminate without cause|Can the [E] end the [doc] for convenience} = [yn] ? {How much notice is
  needed to terminate|What is the notice period for termination} = [d]
== service / Intellectual Property
- {All rights|Copyright} in the {reports|drawings|software|designs} {made|created} under this [doc]
  {belong|shall belong} to the [D] {from their creation|upon payment}{; the [E] keeps only a copy|}. The
  {other party|[E]} {may[yn:Yes]|may not[yn:No]} use them for {other|its own} {clients|business}.
- The [D] {owns|shall own} {the work product|all inventions and designs}, and the [E] {assigns|hereby assigns}
  to it {any right it may have|all patents}{ for a sum of [money 100-900]|}. The [E] {is allowed[yn:Yes]|is
  not allowed[yn:No]} to use the work for its own business.
? {Which party|Who} owns the {work|rights in the work} = the [D] ? May the [E] use the work for {its
  own|other} business = [yn]
== service / Data Protection
- The [Y] may process personal data {only|solely} {on the instructions of the [X]|for the purposes in
  [section]}, shall report {a breach|any loss of data} within [d=hours], and shall {erase|delete} the data
  [p=days 10-90] after {the services end|termination}. Transfer of data abroad is
  {allowed[yn:Yes]|prohibited[yn:No]}.
- {Personal data of customers|Data of natural persons} {are|shall be} {erased|deleted} by the [Y] within
  [p=days 10-90] {after use|after the end of the work}; {leaks|security breaches} are {reported|notified} to
  the [X] within [d=hours]. The [Y] {may[yn:Yes]|may not[yn:No]} send data {abroad|to another country}.
? Within what time must a breach or leak {of data |}be reported = [d] ? {When must the data be erased|Within
  what period are data deleted} = [p] ? May data be sent abroad = [yn]
== job / Duties and Salary
- The [X] {employs|hires} [B] as [j=position] {from|with effect from} [b=date]. The {yearly|annual} salary is
  [m=money 20000-190000], {payable|paid} in {twelve equal parts|monthly installments}. The [Y] shall work [n
  20-45] hours a week{ at [town]|}{ and report to [full]|}.
- {As|In the position of} [j=position], the [Y] {earns|receives} {a salary of|} [m=money 20000-190000] {per
  year|a year}, starting on [b=date], and shall {devote full time to the duties|perform the duties in
  [section]}{ under the direction of [full]|}.
? {What is the position of the [Y]|As what is the [Y] employed} = [j] ? {What is the yearly salary|How much
  does the [Y] earn in a year} = [m] ? On what date does the {employment|work} start = [b]
== job / Severance
- If the [X] {dismisses the [Y]|ends the employment} without cause, {it shall pay|the [Y] receives} severance
  {equal to|of} [p=months 2-18] of salary{, but not more than [money 20000-90000]|}. {On resignation,
  severance is also due[yn:Yes]|On resignation, no severance is due[yn:No]|A [Y] who resigns gets it
  too[yn:Yes]|A [Y] who resigns gets none[yn:No]}.
- Severance pay {amounts to|is} [p=months 2-18] of {base|} salary and is {due|payable} on
  {termination|dismissal} without cause. {It is[yn:Yes]|It is not[yn:No]} due when the [Y] resigns{ before
  [date]|}{; [section] governs the details|}.
? How much severance, in months of salary, is {due|paid} = [p] ? {Is severance due on resignation|Does the [Y]
  get severance after resigning} = [yn]
== job / Non-Compete
- For [p=months 3-24] after {leaving|the end of employment}, the [Y] shall not {work for|join|advise} {a
  competitor|any competing business} {within [n 10-200] miles of [town] in|in} [s=state]. {Breach|Each breach}
  {costs|carries a penalty of} [m=money 900-90000]{, besides any damages|}.
- The [Y] {undertakes|agrees} not to {compete|start a competing business} in [s=state] {during|for} [p=months
  3-24] after {termination|the last day of work}{ or to approach customers of the [X]|}, {on pain of|under} a
  {contractual|} penalty of [m=money 900-90000].
? {How long does the non-compete last|For how long may the [Y] not compete} = [p] ? In {which|what} state does
  the {non-compete|duty not to compete} apply = [s] ? What is the penalty for {breach|competing} = [m]
== job / Vacation and Probation
- The [Y] {has a right to|is entitled to} [v=n 10-40] days of paid vacation {per year|each year}. The first
  [p=months 2-9] are a probation period, {during|in} which {either party may end the employment|the notice
  period is only [days 3-14]}. Unused vacation {may[yn:Yes]|may not[yn:No]} be carried over to the next year.
- {After|Upon} a probation of [p=months 2-9], the employment becomes permanent. {Vacation amounts to|The
  yearly vacation is} [v=n 10-40] days; {unused days are carried over[yn:Yes]|unused days are lost at the end
  of the year[yn:No]|unused days remain valid in the next year[yn:Yes]|unused days cannot be carried
  over[yn:No]}{, and [section] applies|}.
? How many days of vacation {are there|does the [Y] have} = [v] ? How long is the probation{ period|} = [p] ?
  {Can unused vacation be carried over|May unused days of vacation be used in the next year} = [yn]
== loan / Principal and Interest
- The [X] {lends|shall lend} to the [Y] the {principal|} sum of [m=money 2000-900000] {with interest at|at a
  yearly interest rate of} [i=pct 2-14]{ a year|}, {to be repaid|repayable} {in full|} by [b=date]{ in [n
  12-96] installments|}[subject_to].
- The [Y] {promises|undertakes} to repay {the principal of|} [m=money 2000-900000] on or before [b=date],
  {together with|plus} interest {at the rate of|of} [i=pct 2-14] {a year|per annum}{, counted from the day of
  payment|}{ to the account of [A]|}.
? {How much is lent|What is the principal of the loan} = [m] ? {What is the interest rate|At what rate is
  interest paid} = [i] ? By {what|which} date must the loan be repaid = [b]
== loan / Prepayment
- The [Y] {may[yn:Yes]|may not[yn:No]|is entitled to[yn:Yes]|is not entitled to[yn:No]} {prepay|repay} the
  loan {early|before it is due}{, in whole or in part|}. {A payment that is late|Any late payment}
  {carries|bears} a {late fee|charge} of [f=money 15-400] {for each week|per month}[subject_to].
- {Early repayment is {permitted[yn:Yes]|excluded[yn:No]}|Repayment before the due date is
  {allowed[yn:Yes]|not allowed[yn:No]}}{, except on a bank holiday|}. {For|On} an installment {paid late|more
  than [days 3-15] late} the [Y] {owes|shall pay} a late fee of [f=money 15-400].
? {May the [Y] repay early|Is early repayment allowed} = [yn] ? {How much is the late fee|What must be paid
  for a late payment} = [f]
== loan / Security and Default
- {As security|To secure the loan}, the [Y] {grants|gives} the [X] a {security interest|lien} in
  [c=collateral]. {Default occurs|The [Y] is in default} if a payment is more than [d=days 5-45]
  {late|overdue}{ or the security loses value|}; {then|in that case} the whole debt {falls due|becomes
  payable}[subject_to].
- The debt is secured by [c=collateral]{, which the [Y] shall keep in good order|, located in [town]|}. If the
  [Y] {fails to pay|does not pay} {an installment|} within [d=days 5-45] {after it is due|of the due date},
  the [X] may {sell the security|demand the full balance}{ after notice to [B]|}.
? {What secures the loan|In what does the [X] have a security interest} = [c] ? After {what|how long a} delay
  is the [Y] in default = [d]
== loan / Guarantee
- [g=full] {guarantees|stands surety for} the {debt|duties} of the [Y] up to [m=money 900-90000]. The [X]
  {must[yn:Yes]|need not[yn:No]} first sue the [Y]{ before it calls on the guarantor|}. {The guarantee|It}
  {ends|expires} on [b=date]{, if not extended|}.
- {The guarantor, [g=full],|As guarantor, [g=full]} {is liable|answers} for {the loan|all sums due from the
  [Y]} until [b=date], {with a limit of|to a maximum of} [m=money 900-90000], {but only after the [Y] has been
  sued[yn:Yes]|even if the [Y] has not been sued[yn:No]}[subject_to].
? Who is the guarantor = [g] ? {What is the limit of the guarantee|Up to what amount does the guarantor
  answer} = [m] ? Must the [X] first sue the [Y] = [yn] ? {When|On what date} does the guarantee end = [b]
== license / Grant and Royalty
- The [X] grants {to the [Y]|} {an exclusive[yn:Yes]|a non-exclusive[yn:No]} license to use the
  {trademark|patent|software|design} "[brand]" in [t=country] for [p=years 2-15]. The [Y] {pays|shall pay} a
  royalty of [r=pct 2-20] of {net sales|its gross income}{, each quarter|}.
- {In|Within} [t=country], the [Y] may use the {patent|work|trademark} for [p=years 2-15] {against|for} a
  royalty of [r=pct 2-20] {on all sales|of the net price}. {No other person will be licensed there[yn:Yes]|The
  license is exclusive[yn:Yes]|The license is not exclusive[yn:No]|The [X] may license others there as
  well[yn:No]}.
? {Is the license exclusive|Does the [Y] have an exclusive license} = [yn] ? {For what country is the license
  granted|In which country may the [Y] use it} = [t] ? {What is the royalty|What royalty must the [Y] pay} =
  [r] ? How long does the license last = [p]
== land / Title and Easement
- The [X] {conveys|grants} to the [Y] {a right of way|an easement} {[w=n 5-40] feet wide|of [w=n 5-40] feet}
  {across|over} {the land|the lot} at [address] for {access|a water line|a driveway}. {It may be used by
  vehicles[yn:Yes]|Vehicles may pass[yn:Yes]|Vehicles may not pass[yn:No]|It may not be used by
  vehicles[yn:No]}. The [D] shall {maintain|repair} it{ at no cost to the [E]|}.
- {An easement|A right of way} [w=n 5-40] feet in width {burdens|runs along} the
  {northern|eastern|southern|western} {border|side} of lot [n 2-90] {in [town]|} in favor of the [Y]. {Use
  {with|by} {cars|vehicles|trucks} is {permitted[yn:Yes]|not permitted[yn:No]}}. Upkeep is a duty of the [D]{,
  and the [E] shares in no cost|}.
? How {many feet wide|wide, in feet,} is the {easement|right of way} = [w] ? {Which party|Who} must maintain
  the {easement|right of way} = the [D] ? May {vehicles|cars and other vehicles} use the {easement|right of
  way} = [yn]
== land / Escrow and Closing
- The [Y] {deposits|shall deposit} [m=money 5000-90000] with [g=company] as escrow agent. {Closing|The
  closing} {takes place|is} on [b=date] in [town]; {if the [Y] withdraws|should the [Y] withdraw}, the deposit
  {is[yn:Yes]|is not[yn:No]} refunded. The [D] pays the {closing costs|transfer tax}{, the [E] the survey|}.
- [g=company] holds {in escrow|as escrow agent} [m=money 5000-90000] until the closing on [b=date]. If the [Y]
  withdraws, {the sum is returned to the [Y][yn:Yes]|the sum is kept by the [X] and is not returned[yn:No]}.
  {Transfer tax|The cost of closing} is {paid|borne} by the [D]{ and recording fees by the [E]|}.
? Who is the escrow agent = [g] ? {How much is held in escrow|What sum is deposited in escrow} = [m] ? {When
  is the closing|On what date is the closing} = [b] ? {Which party|Who} pays the {closing costs or transfer
  tax|cost of closing or the transfer tax} = the [D] ? {Is the deposit refunded if the [Y] withdraws|If the
  [Y] withdraws, is the deposit returned} = [yn]
== partner / Shares and Contributions
- [A] {contributes|shall contribute} [m=money 5000-90000] and {holds|receives} a share of [s=pct 51-80]; [B]
  {contributes|pays in} [k=money 5000-90000] and {holds|receives} the rest. {Profits and losses|Net profits}
  {are divided|are shared} {in the same proportion|according to these shares}{ on the last day of [month]|}.
- {To the capital,|To the common fund,} [A] {pays|brings in} [m=money 5000-90000] {for|against} a share of
  [s=pct 51-80] and [B] {pays|brings in} [k=money 5000-90000] for the remaining share{. The share of a partner
  may not be pledged|, both due within [days 10-60]|}.
? {What is the share of [A]|What share does [A] hold} = [s] ? How much does [A] {pay in|contribute} = [m] ?
  How much does [B] {pay in|contribute} = [k]
== partner / Management and Withdrawal
- The {business|partnership} is managed by the [D]{; the [E] may inspect the books|, and the [E] has no vote
  in daily matters|}. A partner may withdraw {at the end of a year|at any time} with notice of [p=months
  2-12]{, and the share is valued by [company]|}. Loans above [m=money 5000-90000] {need|require} the consent
  of {both|all} partners.
- The [D] {represents|acts for} the partnership {alone|in all matters}, but {may not borrow|shall not borrow}
  more than [m=money 5000-90000] without the [E]. {Withdrawal requires|To withdraw, a partner gives} notice of
  [p=months 2-12]{ in writing|}{ under [section]|}.
? {Which partner|Who} manages or represents the partnership = the [D] ? {How much notice is needed to
  withdraw|What is the notice period for withdrawal} = [p] ? Above what amount does a loan need consent = [m]
== will / Bequest
- I {give|bequeath|leave} [m=money 900-90000] to {my [mate] |}[p=full] {and|, and} my [t=bequest] to
  [q=full]{, if living at my death|, provided that each survives me by [days 10-60]|}. {Debts and taxes|The
  costs of my funeral} {are|shall be} paid {first|from the rest}. My house at [address] {may[yn:Yes]|may
  not[yn:No]} be sold.
- {To [q=full]{ of [town]|} I give|I leave to [q=full]{ of [town]|}} my [t=bequest], and to [p=full] {the sum
  of|} [m=money 900-90000]{, payable within [months 2-12]|}. The {executors|heirs} {are free to
  sell[yn:Yes]|shall not sell[yn:No]|are allowed to sell[yn:Yes]|are forbidden to sell[yn:No]} the house{ in
  [town]|}.
? Who receives the money = [p] ? {How much money is left to [p]|What sum does [p] receive} = [m] ? Who
  receives the [t] = [q] ? {May the house be sold|Is a sale of the house allowed} = [yn]
== will / Executor
- I, [A], {of [town], [state],|residing in [town],} {declare|make} this {will|my last will} on [d=date] and
  {appoint|name} [p=full] as {executor|my executor}{, to serve without bond|}. {Should [p] be unable to
  serve|If [p] cannot act}, [q=full] shall {take that place|be executor}{ and receive a fee of [pct 2-5]|}.
- {This will|My will}, {signed|made} on [d=date]{ before [w 2-4] witnesses|}, {revokes|replaces} {all earlier
  wills|every earlier will}. {The executor is|As executor I appoint} [p=full]; {the substitute is|in second
  place I appoint} [q=full]{, who shall serve without pay|}.
? Who is {the executor|named as executor in the first place} = [p] ? Who is {the substitute executor|executor
  if the first cannot serve} = [q] ? {When was the will made|On what date was the will made} = [d]
== power / Powers
- I, [A], {appoint|name} [B] as my agent {to {sell|lease|mortgage} my house at [address]|to manage my
  accounts|to act for me in all tax matters}{ and to sign all papers|}, up to {a value of|} [m=money
  900-90000]. {This power|It} {ends|expires} on [d=date]. The agent {may[yn:Yes]|may not[yn:No]}
  {appoint|name} a substitute.
- [B] {is|shall be} {the agent|my lawful agent} {until|through} [d=date] and may {draw checks|sign
  contracts|borrow and lend} {in the name of|for} [A] within a limit of [m=money 900-90000]. {A substitute may
  be appointed[yn:Yes]|No substitute may be appointed[yn:No]|The agent is free to name a
  substitute[yn:Yes]|The agent must act in person and cannot name a substitute[yn:No]}{; [section] applies|}.
? Who is the agent = [B] ? {Who gives the power|For whom does the agent act} = [A] ? {When does the power
  end|On what date does the power end} = [d] ? {What is the limit of the power|Up to what amount may the agent
  act} = [m] ? {May the agent appoint a substitute|Can a substitute be named} = [yn]
== statute / Definitions
- In this [doc], "[t=term]" means {any|a} {person|business|vessel|building} {that|which} {has more than [n
  2-90] employees|is used for trade|is registered in [state]}{ and has an income above [m=money 900-90000]|,
  with a yearly value above [m=money 900-90000]}{, but does not include {a school|a charity|a family
  member}|}.
- {For the purposes of|As used in} [section], the term "[t=term]" {includes|covers} {every|any}
  {dealer|carrier|employer|owner} with {annual sales|a yearly income} above [m=money 900-90000]{, whether or
  not located in [state]|}{; the [X] keeps a list of them|}.
? {Which term is defined|What term does the text define} = [t] ? {Above what amount does the definition
  apply|What amount does the definition contain} = [m]
== statute / Penalties
- {Any person who|A person who|Whoever} {violates|fails to comply with} [section] {of this [doc] |}{is guilty
  of a misdemeanor and |}{shall be fined|is subject to a fine of} not more than [m=money 200-60000]{ for each
  day of the violation|}, {and may be imprisoned[yn:Yes]|but may not be imprisoned[yn:No]|or imprisoned for up
  to [months 2-11][yn:Yes]|and shall in no case be imprisoned[yn:No]}.
- {A violation|A willful violation} of [section] is {punishable by|subject to} a {civil|} {penalty|fine} of up
  to [m=money 200-60000]; imprisonment {is also possible[yn:Yes]|is not provided for[yn:No]|may be ordered in
  addition[yn:Yes]|may not be ordered[yn:No]}{. A {second|repeated|third} violation doubles {that amount|the
  {fine|amount|sum}}|, and the [X] may sue|}.
? {What is the maximum fine|How high can the fine be} = [m] ? {Can the violator be imprisoned|Is imprisonment
  possible} = [yn]
== statute / Effective Date
- This [doc] {takes effect|enters into force} on [d=date]{ and applies to contracts made after that day|}.
  {[section] is|Sections [n 2-9] and [n 10-30] are} repealed {on|as of} [e=date]{. The [X] shall publish a
  notice in each county|}[subject_to].
- {Effective|From} [d=date], {the provisions of this [doc] apply|this [doc] applies} {throughout [state]|in
  every county}; {the former law|the act it replaces} {ceases to apply|expires} on [e=date]{, but pending
  cases continue under it|}.
? {When does the [doc] take effect|On what date does the [doc] enter into force} = [d] ? {On what date does
  the old law end|When is the old law or section repealed} = [e]
== statute / License and Appeal
- {No person may|A person may not} {operate|open|run} a {ferry|hotel|pawn shop|school|bakery|mine|market}
  without a license {from|issued by} the [X]. The {yearly fee|fee} is [m=money 50-900]. {A refusal|Denial of a
  license} may be appealed within [d=days 10-60] to {the court in [town]|the district court}{; the appeal has
  no suspensive effect|}.
- The [X] {issues|grants} the license {within [days 20-90]|upon application} for a fee of [m=money 50-900]{,
  and [section] lists the conditions|}. {An applicant who is refused|Whoever is refused} {may appeal|can
  appeal} within [d=days 10-60]{ after the decision|}. {The license {may|may not} be {sold|transferred|lent}
  to {a relative|another person|a company}.|}
? {How much is the {license |}fee|What is the fee for a license} = [m] ? Within what period {may a person
  appeal|can a refusal be appealed} = [d]
== statute / Duties and Inspection
- {Every|Each} {plant|shop|vessel|building} {under|subject to} this [doc] shall be inspected by the [X] {at
  least |}{once|twice} in [p=years 2-9]. The [D] {pays|shall pay} the cost of the inspection{ and the [E]
  keeps the record|}. A notice {must be posted[yn:Yes]|need not be posted[yn:No]} {at the entrance|near the
  door|in the office}.
- The [D] {bears|shall bear} the cost of inspections, which {take place|are made} every [p=years 2-9]{ under
  [section]|}{; the [E] has to bear no part of it|}. {The law requires[yn:Yes]|The law does not
  require[yn:No]} that a notice be posted {at the entrance|on the door}.
? {Which party|Who} bears the cost of {the inspection|inspections} = the [D] ? Must a notice be posted = [yn]
  ? {What is the period of inspection|How long is the period of inspection} = [p]
"""
LEGAL_WORDS = """
one: one
nth: first, second, third, fourth, fifth, seventh, tenth, twelfth, fifteenth, twentieth, last
hours: 12 hours, 24 hours, 36 hours, 48 hours, 72 hours, twenty-four (24) hours, forty-eight (48) hours
collateral: the machines, the delivery truck, the inventory, the land, the bank account, the crop, the fishing
  boat, the warehouse, the shares, the patents, the printing press, the herd of cattle, the office building,
  the receivables
bequest: gold watch, library, piano, stamp collection, farm, sailing boat, silver, paintings, car, desk,
  violin, tools, wedding ring, coin collection, orchard, vineyard
term: dealer, carrier, public house, food business, small vessel, place of work, protected building, covered
  employer, regulated person, dwelling, motor carrier, large retailer, private school, waste facility, lender,
  covered record
proviso: Nothing in {this|the preceding} sentence limits {a right|any right} {under|given by} [section]. |
  {Time is of the essence|Strict performance is required} in {this matter|all matters under [section]}. | The
  {heading|title} of {this clause|[section]} has no legal effect. | This {clause|provision} {survives|remains
  in force after} the end of the [doc]. | {Details|Further terms} {are set out|are found} in [section]. | The
  [D] {confirms|states} that it has read {and understood |}[section]. | {Any|A} breach of this duty entitles
  the [E] to {damages|relief in court}. | {Further rights|Rights} of the [E] under {[section]|the law} are
  {reserved|not affected}. | The parties {initialed|discussed} this {clause|term} {separately|on [date]}. |
  {As used here|In this clause}, "day" means a {calendar|business} day{ in [state]|}.
"""

# -----------------------------------------------------------------------------
# The grammar

UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen""".split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(n):
    return UNITS[n] if n < 20 else TENS[n // 10] + ("-" + UNITS[n % 10] if n % 10 else "")


def integer(rng, lo, hi):
    return lo + int(rng.random() * (hi - lo + 1))  # random() alone is promised to be the same in every Python


def pick(rng, items):
    return items[integer(rng, 0, len(items) - 1)]


def money(rng, lo, hi):
    # amounts of every size up to hi, the large ones rounded as people round them
    n = int(lo * (hi / lo) ** rng.random())
    step = 1 if n < 100 else 5 if n < 1000 else 50 if n < 10000 else 500
    return f"${n // step * step:,}" + pick(rng, ["", "", "", ".00" if step > 1 else ".50"])


def period(unit):
    def draw(rng, lo, hi):
        n = integer(rng, lo, hi)
        return pick(rng, [f"{n} {unit}", f"{in_words(n)} {unit}", f"{in_words(n)} ({n}) {unit}"])
    return draw


NUMBERS = {
    "n": lambda rng, lo, hi: str(integer(rng, lo, hi)),
    "w": lambda rng, lo, hi: in_words(integer(rng, lo, hi)),
    "money": money,
    "days": period("days"), "months": period("months"), "years": period("years"),
    "pct": lambda rng, lo, hi: str(integer(rng, lo, hi)) + pick(rng, ["%", "%", ".5%", ".25%", " percent"]),
    "year": lambda rng: str(integer(rng, 1890, 2024)),
    "date": lambda rng: f"{pick(rng, WORD['month'])} {integer(rng, 1, 28)}, {integer(rng, 1985, 2029)}",
    "time": lambda rng: f"{integer(rng, 5, 22)}:{5 * integer(rng, 0, 11):02}",
}


def plural(word):
    head, _, last = word.rpartition(" ")
    odd = {"sheep": "sheep", "deer": "deer", "goose": "geese", "mouse": "mice", "ox": "oxen",
           "wolf": "wolves", "knife": "knives", "shelf": "shelves"}
    if last in odd:
        last = odd[last]
    elif last.endswith("y") and last[-2] not in "aeo":
        last = last[:-1] + "ies"
    else:
        last += "es" if re.search(r"(s|x|ch|sh|potato|tomato)$", last) else "s"
    return f"{head} {last}".strip()


FORMS = {
    "s": plural,
    "he": lambda name: "she" if name.split()[0] in WORD["female"] else "he",
    "him": lambda name: "her" if name.split()[0] in WORD["female"] else "him",
    "his": lambda name: "her" if name.split()[0] in WORD["female"] else "his",
}


def entries(text):
    """The (name, body) pairs of a table: a line each, indented lines continue the one above."""
    return [line.split(": ", 1) for line in re.sub(r"\n +", " ", text.strip()).split("\n")]


WORD = {name: body.split(" | " if " | " in body else ", ")
        for name, body in entries(WORDS + LEGAL_WORDS.lstrip())}


def expand(rng, text, env):
    while "{" in text:  # the innermost alternatives first: that is all it takes to let them nest
        text = re.sub(r"\{([^{}]*)\}", lambda m: pick(rng, m[1].split("|")), text)
    return re.sub(r"\[([^\[\]]+)\]", lambda m: fill(rng, m[1], env), text)


def fill(rng, slot, env):
    if ":" in slot:
        name, env[name] = slot.split(":")[0], slot.split(":")[1]
        return ""
    var, _, source = slot.rpartition("=")
    source, _, form = source.partition(".")
    kind, _, span = source.partition(" ")
    if source in env:
        value = env[source]
    else:
        for _ in range(9):  # rather something that this record does not hold yet
            if kind in NUMBERS:
                value = NUMBERS[kind](rng, *map(int, span.split("-") if span else ()))
            else:
                value = expand(rng, pick(rng, WORD[kind]), env)
            if value not in env["seen"]:
                break
        env["seen"].append(value)
    value = FORMS[form](value) if form else value
    if var:
        env[var] = value
    return value


def polish(text):
    text = re.sub(r"( *//)+ *", "\n", text)
    text = re.sub(r" +([,.;:?!)])", r"\1", re.sub(r" +", " ", text)).strip()
    vowel = r"(?=\"?\$?(?:8|1[18](?!\d)|hour|honest|heir|(?!uni|use|usu|one|once|eur)[aeiouAEIOU]))"
    text = re.sub(r"\b([Aa]) " + vowel, r"\1n ", text)
    return re.sub(r"(^|\n|[.?!] )([a-z])", lambda m: m[1] + m[2].upper(), text)


# -----------------------------------------------------------------------------
# Records

SCENE_LIST = [body for _, body in entries(SCENES)]
READING_LIST = [body for _, body in entries(READING)]


def english(rng):
    reading = rng.random() < 0.25
    text = expand(rng, pick(rng, READING_LIST if reading else SCENE_LIST), {"seen": []})
    if reading:  # the form in which the legal corpus asks
        text = text.replace(" Q: ", " //Question: ").replace("? A: ", "? //Answer: ")
    text = polish(text)
    return {"text": text} if 150 <= len(text) <= 600 else None


def parse_clauses(text):
    clauses = []
    for line in re.sub(r"\n +", " ", text.strip()).split("\n"):
        mark, line = line.split(" ", 1)
        if mark == "==":
            kind, heading = line.split(" / ")
            clauses.append({"kind": kind, "heading": heading, "-": [], "?": []})
        else:
            clauses[-1][mark] += line.split(" ? ")
    return clauses


CLAUSE_LIST = parse_clauses(CLAUSES)
ASKED = [clause for clause in CLAUSE_LIST if clause["?"]]
PARTIES = CLAUSE_LIST[0]


def contract(rng, kind):
    docs, roles, a, b = KINDS[kind]
    env = {"seen": [], "doc": pick(rng, docs.split("|"))}
    env["X"], env["Y"] = pick(rng, roles.split("|")).split(",")
    for name, table in ("A", a), ("B", b):
        env[name] = fill(rng, table, env)
    return env


def clause_text(rng, clause, env):
    """One phrasing of the clause and the variables it binds; who is [D] is drawn anew for every clause."""
    env = dict(env)
    env["D"], env["E"] = pick(rng, [(env["X"], env["Y"]), (env["Y"], env["X"])])
    text = expand(rng, pick(rng, clause["-"]), env)
    return text, env


def clauses_of(kind):
    return [c for c in CLAUSE_LIST if c["kind"] == kind or c["kind"] == "*" and kind in CONTRACTS]


def legal_text(rng):
    kind = pick(rng, CONTRACTS + ["will", "power", "statute", "statute"])
    env, pool = contract(rng, kind), clauses_of(kind)
    own = [c for c in pool if c["kind"] == kind]
    chosen = [PARTIES] if kind in CONTRACTS and rng.random() < 0.4 else []
    for _ in range(integer(rng, 3, 5)):
        clause = pick(rng, own if rng.random() < 0.5 else pool)
        if clause not in chosen:
            chosen.append(clause)
    style, first, parts = pick(rng, ["plain", "plain", "section", "number"]), integer(rng, 1, 20), []
    for i, clause in enumerate(chosen):
        text, bound = clause_text(rng, clause, env)
        if rng.random() < 0.5 and kind in CONTRACTS:
            text += " " + expand(rng, pick(rng, WORD["proviso"]), bound)
        head = {"plain": "", "section": f"Section {first + i}. {clause['heading']}. ",
                "number": f"{first}.{i + 1} {clause['heading']}. "}[style]
        parts.append(polish(head + polish(text)))
    text = ("\n" if style != "plain" else " ").join(parts)
    return {"text": text} if 250 <= len(text) <= 900 else None


def legal_question(rng):
    clause = pick(rng, ASKED)
    kind = pick(rng, CONTRACTS) if clause["kind"] == "*" else clause["kind"]
    env = contract(rng, kind)
    template, answer, unwanted = pick(rng, clause["?"]), None, pick(rng, ["Yes", "No"])
    while answer in (None, unwanted):  # so that both come up equally often for every question
        text, bound = clause_text(rng, clause, env)
        question, answer = (expand(rng, part, bound) for part in template.rsplit(" = ", 1))
    texts, roles = [text], {f"the {env['X']}", f"the {env['Y']}"}
    other = pick(rng, clauses_of(kind))
    if other not in (clause, PARTIES) and rng.random() < (0.3 if answer in roles else 0.75):  # a distraction
        texts.insert(integer(rng, 0, 1), clause_text(rng, other, env)[0])
    if kind in CONTRACTS and clause is not PARTIES and (answer in roles or rng.random() < 0.3):
        texts.insert(0, clause_text(rng, PARTIES, env)[0])
    passage = " ".join(polish(t) for t in texts)
    # a duty must not fall on the only party that the passage names
    wanted = roles if answer in roles else [] if answer in ("Yes", "No") else [answer]
    if all(span in passage for span in wanted) and 150 <= len(passage) <= 500:
        return {"prompt": f"{passage}\nQuestion: {polish(question)}?\nAnswer:", "answer": answer}


def collect(make, rng, count):
    """So many different records; make() returns None for one that came out too short or too long."""
    records = {}
    while len(records) < count:
        record = make(rng)
        if record:
            records.setdefault(record.get("text") or record["prompt"], record)
    return list(records.values())


def main():
    parser = argparse.ArgumentParser(description="Write english.jsonl and legal.jsonl.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent, metavar="DIR")
    out = parser.parse_args().out
    law = random.Random(2)
    pairs = zip(collect(legal_text, law, 995), collect(legal_question, law, 995))
    corpora = {"english.jsonl": collect(english, random.Random(1), 8800),
               "legal.jsonl": [record for pair in pairs for record in pair]}
    for name, records in corpora.items():
        data = "".join(json.dumps(record) + "\n" for record in records).encode("ascii")
        (out / name).write_bytes(data)
        print(f"{name}: {len(records)} records, {len(data) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
