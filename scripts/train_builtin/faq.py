# ruff: noqa: E501, SIM905 - tables of phrases are kept compact, as one text per table
"""What the built-in model knows: the field's words, mlxchat's commands, small talk.

An entry has an answer of one or two sentences (the first alone is its short form) and wordings.
`{a|b}` in a wording means either; `!` marks a wording that is kept for the evaluation only.
Terms need no wordings of their own: they go through shared frames.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import product

REAL = "mlxchat chat -m mlx-community/Qwen3-4B-4bit"
UNKNOWN = f"I am a tiny model and do not know that. For a real model: {REAL}"
UNKNOWN_SHORT = "I am a tiny model and do not know that."


@dataclass(frozen=True)
class Entry:
    """One thing the model can say, and how people ask for it."""

    answer: str
    train: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    terms: tuple[str, ...] = field(default=())

    @property
    def short(self) -> str:
        """Return the first sentence."""
        return re.split(r"(?<=[.!?])\s", self.answer)[0]


def expand(pattern: str) -> list[str]:
    """Return all readings of a pattern with `{a|b}` choices."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [p.split("|") if i % 2 else [p] for i, p in enumerate(parts)]
    return [re.sub(r"\s+", " ", "".join(c)).strip() for c in product(*choices)]


# "T" is the term with its article; "V" is "is" or "are".
FRAMES = (
    "what V T?;what V T;what V T exactly?;what does T mean?;what do you mean by T?;explain T;"
    "explain T to me;can you explain T?;can you explain T to me;tell me about T;tell me what T V;"
    "tell me something about T;explain T in simple words;i want to know what T V;define T;"
    "what V meant by T?;what V T in a language model?;T?;what about T?;and T?;and what V T?;"
    "could you tell me what T V?;do you know what T V?;i do not understand T;help me understand T;"
    "how would you describe T?;give me a short explanation of T;what V T for?;what V T good for?;"
    "why do we need T?;meaning of T;describe T;i have no idea what T V;so what V T?;"
    "what V T again?;remind me what T V;what V T, in short?;I would like to know about T;"
    "talk about T;how does T work?;what V this thing called T?;do you know T?;"
    "people speak of T, what does it mean?;what V T in mlxchat?;what should i know about T?;"
    "i read about T. what does it mean?;can you say what T V?;what do they mean by T?"
).split(";")
UNSEEN_FRAMES = (
    "teach me about T;in a few words, what V T?;i keep hearing about T, what does it mean?;"
    "any idea what T V?;quick question: what V T?;would you mind explaining T?;"
    "could you clarify T for me?;I am new here, what V T?;i'd love to understand T;"
    "please say what T V"
).split(";")

# term forms (a leading + is a plural): answer
_TERMS = """
a token, +tokens, the word token :: A token is a piece of text, often a word or part of one. The model reads and writes tokens, not letters.
an embedding, +embeddings, an embedding vector :: An embedding is the list of numbers that stands for a token. Tokens with similar use have similar embeddings.
RoPE, rotary embedding, rotary position embedding, +rotary positions :: RoPE turns queries and keys by an angle that grows with the position. So attention can see how far apart two tokens are.
attention, self-attention, the attention mechanism :: Attention lets each token look at earlier tokens and copy what it needs from them.
an attention head, +attention heads, a head :: A head is one of several attentions that work side by side in a layer. Each looks for something else.
the KV cache, a KV cache, KV :: The KV cache holds the keys and values of all tokens read so far. Thanks to it nothing is read twice.
prefill, the prefill, prefilling :: Prefill is reading the prompt, many tokens at once, before the first new token.
decode, decoding, the decode phase :: Decode is writing the answer, one token after the other.
+logits, a logit :: Logits are the raw scores of all possible next tokens, before softmax.
temperature, the temperature, the option --temp :: Temperature makes the choice of tokens bolder or safer. 0 always takes the likeliest token.
top-p, top p, nucleus sampling, the option --top-p :: Top-p keeps the likeliest tokens until their probabilities add up to p, and drops the rest.
top-k, top k, top-k sampling :: Top-k keeps only the k likeliest tokens.
min-p, min p, min-p sampling :: Min-p drops tokens that are far less likely than the best one.
quantisation, quantization, a quantised model, quantizing :: Quantisation stores weights with few bits, 4 or 8 instead of 16. The model gets smaller and faster.
softmax, the softmax, the softmax function :: Softmax turns scores into probabilities that add up to 1.
the residual stream, a residual stream :: The residual stream is the vector that every layer reads from and adds to, from embedding to logits.
a layer, +layers, a transformer layer, a block :: A layer is attention followed by a feed-forward network. I have 6 of them.
the context window, the context, context length, a context window :: The context window is how many tokens a model can see at once. Mine is 2048.
a chat template, the template, +chat templates, the chat template :: A chat template writes the conversation as the one text that the model was trained on.
the prompt cache, a prompt cache, prompt caching :: The prompt cache keeps what was read in earlier turns, so only new tokens are read.
sampling, a sampler, token sampling :: Sampling is how the next token is picked from the probabilities.
a seed, the seed, the option --seed, a random seed :: A seed fixes the random choices. The same seed gives the same answer.
time to first token, TTFT, the time to first token :: Time to first token is how long you wait until the answer starts.
+tokens per second, tok/s, the decode speed :: Tokens per second is the speed of reading or writing. mlxchat shows both.
the logit lens, a logit lens :: The logit lens shows what the model would say after each layer, if it had to stop there.
Metal, Apple Metal :: Metal is Apple's way to compute on the GPU. MLX uses it.
MLX, the MLX framework, Apple MLX :: MLX is Apple's array framework for machine learning on Apple silicon. mlxchat runs on it.
safetensors, a safetensors file, the safetensors format :: Safetensors is a safe file format for model weights. It holds numbers and no code.
the Hugging Face Hub, Hugging Face, the Hub, the HF hub :: The Hugging Face Hub is a website where models are shared. mlxchat can load models from it.
BPE, byte pair encoding, byte-level BPE :: BPE builds tokens by joining the pairs of pieces that occur most often.
a tokenizer, the tokenizer, +tokenizers :: A tokenizer cuts text into tokens and gives each a number.
a transformer, the transformer, +transformers :: A transformer is a stack of layers with attention. Nearly all language models are transformers.
a language model, +language models, an LLM, +LLMs, a large language model :: A language model predicts the next token of a text, again and again.
the feed-forward network, an MLP, the MLP, a feed-forward layer :: The feed-forward network works on each token alone. Much of what a model knows sits there.
SwiGLU, the SwiGLU activation :: SwiGLU is a feed-forward network in which one half gates the other.
RMSNorm, rms norm, layer norm, normalisation :: RMSNorm scales a vector to a steady length before each part of a layer.
a prompt, the prompt, +prompts :: A prompt is the text a model gets before it answers.
a system prompt, the system prompt, +system prompts :: A system prompt says how the model should behave. Set it with -s or /system.
greedy decoding, greedy sampling, greedy search :: Greedy decoding always takes the likeliest token. Use --temp 0 for it.
+weights, the weights, +parameters, model weights :: Weights are the numbers a model learned. I have about PARAMS of them.
training, model training, pretraining :: Training changes the weights until the model predicts its texts well. I was trained on one CPU core.
inference, model inference :: Inference is using a trained model. Prefill and decode are its two phases.
a GPU, the GPU, +GPUs :: A GPU is a chip that does many small sums at once. Models run fast on it.
memory bandwidth, the memory bandwidth, bandwidth :: Memory bandwidth is how many bytes a chip reads per second. It limits the speed of decode.
unified memory, Apple's unified memory :: Unified memory is shared by CPU and GPU, so a Mac can hold large models.
the vocabulary, a vocabulary, vocab size :: The vocabulary is the list of all tokens a model knows. Mine has 3072.
probability, +probabilities, token probability :: The probabilities say how likely each token is to come next. They add up to 1.
an end-of-turn token, the stop token, the EOS token, EOS :: The end-of-turn token is how a model says that its answer is finished.
a stop string, +stop strings :: A stop string ends the answer as soon as it appears.
repetition penalty, the repetition penalty :: The repetition penalty makes tokens that were used before less likely.
grouped-query attention, GQA, grouped query attention :: In grouped-query attention several heads share keys and values, so the KV cache is smaller.
+queries and keys, a query, a key, +keys and values :: A query asks, a key offers, and the value is what gets copied when they match.
a causal mask, the causal mask, masking :: The causal mask hides later tokens, so a token sees only what came before it.
fine-tuning, finetuning, a fine-tune :: Fine-tuning trains a finished model a little more on special texts.
a steering vector, steering, +steering vectors :: A steering vector is added to the residual stream to push answers in one direction.
speculative decoding, a draft model, speculation :: In speculative decoding a small model guesses tokens and the large one checks them together.
perplexity, the perplexity :: Perplexity says how surprised a model is by a text. Low is good.
a neural network, +neural networks :: A neural network turns numbers into other numbers with weights that were learned.
machine learning, ML :: In machine learning a program learns from examples instead of rules.
an open model, open weights, +open models :: An open model is one whose weights you may download and run yourself.
4-bit, 4 bit weights, four bits :: 4-bit means that each weight is stored in four bits. That is a quarter of the usual size.
bfloat16, bf16, float16 :: bfloat16 and float16 store a number in 16 bits. Most models are shared that way.
JSON, the option --json, json output :: With --json mlxchat prints one JSON object per answer, with text, tokens and timing.
the option --timing, --timing, timing :: With --timing mlxchat prints where the time of each answer went.
the option --verify, --verify, verify :: With --verify mlxchat proves that its cache gives the same answer as reading everything again.
the option --max-tokens, --max-tokens, max tokens :: With --max-tokens you limit how long an answer may get.
the option -m, --model, -m :: With -m you choose the model, a folder or a name from the Hugging Face Hub.
the option -s, --system, -s :: With -s you set the system prompt.
mlxchat doctor, doctor, the doctor command :: mlxchat doctor shows your machine, the backend and what is missing.
mlxchat generate, generate, the generate command :: mlxchat generate "..." prints one answer and ends. It reads text from a pipe too.
mlxchat chat, the chat command :: mlxchat chat opens the chat in the terminal. Plain mlxchat does the same.
/help, the command /help, slash help :: /help lists the commands of the chat.
/system, the command /system :: /system shows or sets the system prompt.
/reset, the command /reset :: /reset clears the conversation and starts anew.
/stats, the command /stats :: /stats shows tokens, speed and memory of this chat.
/retry, the command /retry :: /retry answers your last message again.
/undo, the command /undo :: /undo takes back the last message and its answer.
/edit, the command /edit :: /edit lets you change an earlier message and go on from there.
/fork, the command /fork :: /fork starts a second branch of the conversation here.
/tree, the command /tree :: /tree shows all branches of the conversation.
/goto, the command /goto :: /goto jumps to another branch or message.
/cache, the command /cache :: /cache shows what the KV cache holds.
/compact, the command /compact :: /compact lets the model sum up the oldest turns, so that the context has room again.
/continue, the command /continue :: /continue goes on with an answer that was cut off.
/model, the command /model :: /model shows the model or loads another one. The conversation stays.
/copy, the command /copy :: /copy puts the last answer on the clipboard. /copy code takes only the code.
/set, the command /set :: /set changes a sampling option, for example /set temp 0.7.
/title, /save, the command /save :: /save gives the conversation a title. /resume opens it again.
mlxchat history, the history command :: mlxchat history lists, searches and exports your conversations.
mlxchat cache, the cache command :: mlxchat cache shows the stored prompts on disk and clears them.
mlxchat config, the config command :: mlxchat config shows and sets your settings.
mlxchat bench, the bench command, a benchmark :: mlxchat bench measures how fast a model reads and writes on your machine.
mlxchat inspect, the inspect command :: mlxchat inspect lets you look inside a model, from tokens and attention to the logit lens.
/exit, the command /exit, /quit :: /exit leaves the chat. Ctrl-D does the same.
Ctrl-C, ctrl c, control c :: Ctrl-C stops the answer and keeps the chat.
Ctrl-D, ctrl d, control d :: Ctrl-D leaves the chat.
Apple silicon, an M-series chip, the M1 :: Apple silicon is the chip family of Macs, M1 and later. CPU and GPU share one memory.
Qwen, Qwen3, the Qwen models :: Qwen is a family of open language models. Load one with -m mlx-community/Qwen3-4B-4bit.
Llama, the Llama models, Llama 3 :: Llama is a family of open language models by Meta. mlxchat can run it.
a turn, +turns :: A turn is one message of yours and the answer to it.
streaming, token streaming :: Streaming shows the answer while it is being written, token by token.
ChatML, the ChatML format :: ChatML is a chat template that marks each message with its role. I use it.
a vector, +vectors :: A vector is a list of numbers. Inside a model every token is a vector.
a matrix, +matrices, a weight matrix :: A matrix is a table of numbers that turns one vector into another.
the loss, a loss function, training loss :: The loss says how wrong the model's predictions are. Training makes it small.
a gradient, +gradients, gradient descent :: A gradient says how to change each weight so that the loss gets smaller.
overfitting, memorisation :: Overfitting is learning examples by heart instead of the rule behind them.
a dataset, +datasets, training data :: A dataset is a collection of examples to learn from. Mine was written by a small program.
hallucination, +hallucinations, hallucinating :: A hallucination is a wrong answer that a model states as if it were true.
latency, the latency :: Latency is how long you wait for something to happen.
throughput, the throughput :: Throughput is how much gets done per second.
a checkpoint, +checkpoints, a model checkpoint :: A checkpoint is a saved copy of a model's weights.
LoRA, a LoRA adapter, an adapter :: LoRA fine-tunes a model by training two thin matrices per layer instead of all weights.
distillation, model distillation :: In distillation a small model learns from the answers of a large one.
a mixture of experts, MoE, mixture of experts :: In a mixture of experts each token uses only a few parts of the network.
flash attention, FlashAttention :: Flash attention computes attention in small tiles, so it needs little memory.
a sliding window, sliding window attention :: With a sliding window a token sees only the last few thousand tokens.
a reasoning model, thinking, +reasoning models :: A reasoning model writes its thoughts before the answer. I do not think that way.
RAM, memory, main memory :: A model must fit into memory to run fast. A Mac can use most of its RAM for it.
open source, free software :: Open source means that everybody may read and change the code. mlxchat is open source.
"""

# answer :: wording ; wording ; ! unseen wording
_TALK = f"""
I am fine, thank you. How are you? :: how are you{{| today| doing|}}?; {{how's it going|how is it going|how do you do|hows it going}}?; {{are you|you}} {{ok|okay|well|fine|alright}}?; how {{do|are}} you {{feel|feeling}}{{| today}}?; how have you been?; ! how are things with you?; ! are you doing well today?
You are welcome. :: {{thanks|thank you|thx|ty|many thanks|cheers}}{{|!| a lot| so much| very much}}; {{great|ok|nice|good|cool|perfect}}, {{thanks|thank you|thx}}; thanks for {{your help|that|the help|the answer}}; that {{helps|helped}}{{| a lot}}; ! thank you, that was helpful; ! much appreciated
Goodbye! Leave with /exit or Ctrl-D. :: {{bye|goodbye|bye bye|see you|see you later|farewell|cya|good bye|so long}}{{|!| now| then}}; {{ok|thanks|well}}, {{bye|see you|goodbye}}; i {{have to|must|need to|gotta}} {{go|leave}}{{| now}}; good night; see you {{tomorrow|soon|next time}}; ! talk to you later; ! i'm off, goodbye
I can chat a little, remember what you tell me, do small sums, translate some words and explain mlxchat. :: what can you do{{|for me| here| exactly}}?; what {{are your skills|are you good at|do you know|can i ask you|should i ask}}?; {{how can you help|can you help|how do you help}}{{| me}}?; {{help|help me|i need help|i need some help}}; what {{can|could}} {{we|i}} {{do|talk about}}{{| here}}?; what questions can i ask?; what else can you do?; ! what sort of things are you able to do?; ! show me what you can do; ! in what ways could you help me?
I am a program, a tiny language model. I have no feelings and no body. :: are you {{human|a human|a person|real|alive|a robot|a bot|an ai|a machine|a man|a woman|a computer}}?; am i {{talking|speaking|chatting}} {{to|with}} a {{human|person|robot|machine|bot}}?; do you have {{feelings|emotions|a body|a soul|a brain|a heart}}?; {{can you|do you}} {{feel|think|dream|sleep|eat|love|see|hear|suffer}}{{| things| anything|}}?; are you conscious?; ! is there a real person there?; ! do you ever get tired?
I was trained by the mlxchat project, on one CPU core. :: who {{made|built|created|trained|wrote|programmed|designed}} you?; {{where do you come from|where are you from|who is your maker|who is your creator}}?; how were you {{made|trained|built|created}}?; who {{is|are}} {{behind you|your author|your authors|your parents}}?; what were you trained on?; ! who is responsible for making you?; ! which people trained you?
I live inside the mlxchat package, in a few megabytes. :: where {{do you live|are you|do you run|are you running}}?; {{how big|how small|how large}} are you?; where is your home?; what is your size?; how many {{megabytes|bytes|mb}} {{are you|do you have}}?; ! where exactly are you located?
I cannot say more about it. I am a tiny model. :: {{why|why?|why is that|how so|how come|really|are you sure|are you certain|is that true|is that right|says who|how do you know}}?; {{tell me more|go on|continue|more|more details|explain more|say more|can you explain more|more please|elaborate|can you elaborate|what else}}{{|.|?}}; {{what do you mean|what does that mean|huh|what|how|pardon me|come again|why that|i do not understand|i don't get it|i don't understand that}}{{|?}}; ! could you go into more depth?; ! and why would that be so?
I have about PARAMS parameters in 6 layers. A real model has a thousand times more. :: how many {{parameters|weights|layers|heads}} do you have?; how many {{parameters|layers|weights}} {{are you|have you got}}?; {{what is|what's}} your {{architecture|parameter count|number of parameters}}?; what {{kind|type|sort}} of {{network|transformer}} are you?; ! what is the count of your parameters?
I am very small, but I try. :: {{you are|you're|ur}} {{stupid|dumb|bad|silly|useless|not smart|not very smart|an idiot|wrong|boring|slow}}; {{that is|that's|this is}} {{wrong|not right|bad|stupid|nonsense|not true|incorrect}}; {{are you|why are you so}} {{stupid|dumb|small|tiny}}?; that makes no sense; you made a mistake; wrong{{|!| answer}}; ! your answers are really poor; ! that was a silly answer
Thank you, that is kind. :: {{you are|you're|ur}} {{nice|great|good|smart|funny|cool|awesome|cute|clever|the best|amazing|sweet|helpful|fast|kind}}; {{well done|good job|nice job|good work|good answer|nice one|good bot|great work|bravo}}{{|!}}; i {{like|love}} {{you|this|it|mlxchat}}{{| a lot|!}}; {{that is|that's|this is}} {{cool|great|nice|awesome|amazing|good|correct|right|impressive}}{{|!}}; {{wow|amazing|awesome|wonderful|brilliant}}{{|!}}; ! what a lovely answer; ! you did that very well
Good. What would you like to know? :: {{ok|okay|k|yes|yep|yeah|sure|alright|right|i see|fine|good|got it|understood|cool|nice|great|hm|hmm|aha|oh|interesting}}{{|.|!}}; {{ok|oh|ah}} {{i see|good|cool|nice|fine}}; {{that's|that is}} {{interesting|fine|ok}}; {{i'm|i am}} {{good|fine|well|ok|great|doing well|doing fine}}{{|, thanks| too|, thank you|, and you?}}; not bad; ! okay, makes sense; ! alright then
All right. Ask me anything about mlxchat. :: {{no|nope|nah|no thanks|not really|nothing|never mind|nevermind|forget it|maybe|perhaps|no thank you|don't know|i don't know|idk|dunno|not now|not yet|whatever}}{{|.|!}}; ! not at the moment
I am glad to hear that! :: {{i am|i'm|im|i feel}} {{|so |very |really }}{{happy|excited|glad|cheerful|relaxed|proud|delighted}}{{|!| today}}; {{i had|it was}} a {{good|great|lovely|wonderful}} day; i got {{a new job|good news|a present}}; ! today everything went well
I am sorry to hear that. I hope it gets better. :: {{i am|i'm|im|i feel}} {{|so |very |really }}{{sad|tired|sick|ill|lonely|bored|angry|hungry|stressed|unhappy|exhausted|worried|nervous|sleepy|cold}}{{|.| today| now}}; {{i had|it was}} a {{bad|terrible|hard|awful|long}} day; {{i do not|i don't}} feel {{well|good|so good}}; ! today was not my day
Ha ha! :: {{haha|hahaha|lol|ha ha|hehe|rofl|lmao|that's funny|that is funny|very funny|how funny}}{{|!}}; ! that made me laugh
No problem. :: {{sorry|i'm sorry|i am sorry|my bad|oops|excuse me|pardon|apologies|forgive me}}{{|!|.| about that}}; ! please excuse my mistake
I am here. What would you like to know? :: {{are you there|you there|anyone there|anybody here|is anybody there|hello, are you there|are you still there|still there}}?; {{test|testing|ping|test test|this is a test|just testing|one two three}}{{|!}}; ! is someone listening?
I do not know the time. I have no clock. :: what time is it{{| now| please}}?; {{what is|what's|whats|tell me}} the {{time|date|hour|year|day}}{{| today| now}}?; what {{day|date|year|month}} is {{it|today}}{{| today| now}}?; do you have the time?; ! can you look at the clock for me?; ! which day of the week do we have?
My favourite colour is green. :: {{what is|what's|whats}} your {{favourite|favorite}} colour?; which colour do you like{{| best| most}}?; do you have a {{favourite|favorite}} colour?; ! which colour is your own favourite?
I have no favourites except green. :: {{what is|what's|whats}} your {{favourite|favorite}} {{food|animal|song|book|movie|film|word|number|drink|city|hobby|sport|band|thing}}?; what do you like{{| to do| to eat| best}}?; what are your hobbies?; do you like {{music|pizza|chess|cats|dogs|football|movies|coffee}}?; ! is there a book you like best?
I speak English, with a few words of Spanish and Chinese. :: {{what|which|how many}} languages do you {{speak|know|understand}}?; do you {{speak|know|understand}} {{spanish|chinese|german|french|english|italian|japanese|Spanish|Chinese|German|French|English}}?; can you {{speak|talk|write}} {{spanish|chinese|german|french|in spanish|in chinese}}?; {{habla español|hablas español|sprechen sie deutsch|parlez-vous français}}?; ! which tongues can you talk in?
I am as old as this version of mlxchat. :: how old are you?; {{what is|what's}} your age?; when were you {{born|made|trained|built}}?; {{when is|when's}} your birthday?; ! what age are you?
I do not remember other chats. I only see this conversation. :: do you remember {{me|our last chat|yesterday|last time|other chats|our conversation from yesterday}}?; {{can|will|do}} you {{remember|keep}} {{this|everything|what i say|this chat}}{{| tomorrow| later| forever|}}?; do you have a {{memory|long memory}}?; do you {{save|store}} {{my data|our chat|what i say}}?; ! will this talk stay in your memory?
Everything runs on your own machine. Nothing you type is sent away. :: is {{this|it|my data|this chat|mlxchat}} {{private|safe|secure|local|offline}}?; do you {{need|use}} the {{internet|cloud|network}}?; {{does|do}} {{mlxchat|you|it}} {{work|run}} {{offline|without internet|locally}}?; where does my {{data|text|chat}} go?; are you {{online|connected to the internet|in the cloud}}?; do you {{spy on me|send my data|share my data|phone home}}?; ! who can see what i write here?; ! is anything uploaded to a server?
mlxchat is a terminal chat for Apple silicon. It never reads the same token twice and shows where every millisecond went. :: what is {{mlxchat|this program|this tool|this app|this}}?; what does {{mlxchat|this program|this tool|it}} do?; tell me about {{mlxchat|this program|this tool}}; explain mlxchat; what is mlxchat {{for|good for|about}}?; why {{should i use|would i use|use|is there}} mlxchat?; what is special about mlxchat?; what makes mlxchat {{special|different|fast}}?; describe mlxchat; mlxchat?; ! give me an overview of mlxchat; ! what kind of software is mlxchat?
For a real model: {REAL} :: how do i {{get|use|load|run|start|try|install|open}} {{a|another|a real|a better|a bigger|a larger|a different|a good|a proper}} model?; {{can i|how can i|i want to|i'd like to}} {{use|load|run|try|have|switch to}} {{another|a real|a better|a bigger|a larger|a smarter|a different}} model; how do i {{change|switch}} {{the model|models}}?; {{which|what}} model should i {{use|take|try|download}}?; how do i {{download|load}} {{a model|models|qwen|Qwen3|llama|a model from the hub|a model from hugging face}}?; {{give me|i need|i want}} {{a better|a real|a smarter|a bigger}} model; what is a {{real|better}} model?; ! you are too small for me, how do I get something smarter?; ! what do i type for a bigger model?; ! is there a way to run a serious model?
Type /help to see all commands of the chat, or run mlxchat --help. :: {{what|which}} commands {{are there|can i use|do you have|exist|does the chat have|do you know}}?; {{show|list|give}} me {{the|all}} commands; {{how do i|where do i|where can i|how can i}} {{get help|see the commands|find help|list the commands|find the commands}}?; {{list of commands|commands|all commands|the commands}}; how {{do i use|does one use|to use|can i use}} {{mlxchat|this|this chat|this program|it}}?; how does {{this|mlxchat|this chat|it}} work?; what {{options|slash commands}} are there?; ! is there a list of everything i can type?; ! i need an overview of the commands
Leave with /exit or Ctrl-D. :: how {{do|can}} i {{leave|quit|exit|close|stop|end|get out of}} {{|the chat|mlxchat|this|this program|the program|here}}?; how to {{leave|quit|exit}}{{| the chat| mlxchat| this}}?; {{quit|exit|leave|close|stop|q|let me out|i want to leave|i want to quit|end the chat|get me out of here}}; what {{ends|closes|quits}} {{the chat|mlxchat}}?; ! which key closes the program?; ! how am i supposed to get out?
Press Ctrl-C to stop an answer. The chat goes on. :: how {{do|can}} i {{stop|interrupt|cancel|abort|halt}} {{an answer|the answer|you|a reply|the reply|generation|the model|the output}}?; how to {{stop|interrupt|cancel}} {{an answer|the answer|a reply}}?; {{can i|is it possible to}} {{stop|interrupt|cancel}} {{you|an answer|a long answer}}?; what if {{the answer|an answer}} is too long?; {{how do i make you stop|how do i shut you up|make it stop}}?; ! you talk too much, how do i interrupt?; ! is there a key that cuts an answer off?
Type /reset to start anew. :: how {{do|can}} i {{start over|start again|start anew|begin again|clear the chat|reset the chat|reset|clear the conversation|start a new chat|restart|erase everything|delete the conversation|forget everything}}?; {{start over|new chat|clear|reset|start again|restart|clear the chat|forget everything|a new conversation please}}; what clears the {{chat|conversation|history}}?; ! how do i wipe this talk and begin fresh?
Set it with /system in the chat, or with -s when you start mlxchat. :: how {{do|can}} i {{set|change|give|use|edit|write|add}} {{a|the|my own}} system prompt?; where {{do i|can i}} {{set|change|put|write}} the system prompt?; how {{do|can}} i {{change your behaviour|change how you behave|give you a name|change your name|give you instructions|change your style|tell you how to behave}}?; can i {{set|change}} the system prompt?; ! what do i do to give you another personality?
Type /retry to get another answer. :: how {{do|can}} i {{get another answer|get a new answer|try again|retry|ask again|regenerate|repeat the last question|get a different answer|redo the answer}}?; {{try again|another answer please|again please|give me another answer|retry|once more|regenerate}}; can you {{answer again|try again|answer that again}}?; ! i want a second attempt at that answer
Type /undo to take back the last message. :: how {{do|can}} i {{undo|undo that|take back a message|delete my last message|remove the last message|go back|take that back|remove a message}}?; {{undo|undo that|undo the last message|i want to undo|delete that|take that back}}; ! i wrote something wrong and want it gone
Type /edit to change an earlier message. :: how {{do|can}} i {{edit|change|correct|fix|rewrite}} {{a message|my message|my last message|an earlier message|my question|what i wrote}}?; can i {{edit|change|fix}} {{a message|my message|what i wrote|my last question}}?; ! is it possible to alter something i sent before?
Type /fork to branch the conversation, /tree to see the branches and /goto to move. :: how {{do|can}} i {{branch|fork|split}} {{the conversation|the chat|a conversation|this chat}}?; how do {{branches|forks}} work?; how {{do|can}} i {{switch|change|move between|see|list|show}} {{branches|the branches}}?; {{can i|how do i}} {{go back to an earlier point|try two ways|keep two versions|have two branches}}?; ! is there a way to explore two directions?
Type /stats in the chat, or start with --timing. :: how fast {{are you|is this|is mlxchat|is it|is the model}}?; {{how do|how can|where do|where can}} i {{see|find|get|check|measure}} {{the speed|how fast it is|statistics|the stats|the timing|memory use|tokens per second|the token count|how many tokens were used}}?; what is your speed?; {{show me|show}} {{the speed|the stats|statistics|the timing}}; how many tokens {{did we use|did i use|are in the cache}}?; how much memory do you use?; ! where does it say how quick the answers were?
Run mlxchat doctor. It shows your machine and the backend. :: how {{do|can}} i {{check|test}} {{my machine|my setup|my installation|that everything works|the backend|my mac|my gpu}}?; {{what|which}} {{backend|device|hardware}} {{do you|does mlxchat}} {{use|run on}}?; {{something is broken|it does not work|mlxchat does not work|i have a problem|there is a problem|something is wrong}}; is {{metal|the gpu|Metal|my gpu}} {{used|working|on}}?; ! how do i find out whether my computer is ready?
Run mlxchat generate "your question". It prints one answer on stdout. :: how {{do|can}} i {{get one answer|ask one question|get a single answer|ask a single question}}{{| from the shell| without the chat| in a script}}?; how {{do|can}} i use {{mlxchat|it|this}} {{in a script|in a pipe|from a script|without the chat|from the shell|with a pipe}}?; can i {{pipe text|pipe a file|pipe something|use a pipe|pipe text into mlxchat|use it in scripts}}?; how {{do i|to}} pipe {{text|a file|a diff}}{{| into mlxchat| to mlxchat}}?; does it read stdin?; ! what if i only want a single reply in my shell script?
Use --temp, for example mlxchat --temp 0.7. 0 is greedy. :: how {{do|can}} i {{set|change|lower|raise|choose|pick|use}} {{the temperature|a temperature|temperature|the temp}}?; how {{do|can}} i make {{you|the answers|the model|it}} {{more creative|less random|more random|deterministic|more boring|bolder}}?; {{what|which}} temperature should i {{use|take|choose}}?; ! where do i turn the randomness down?
Use --seed and the answer will be the same every time. :: how {{do|can}} i {{get|have}} {{the same answer|the same answer twice|reproducible answers|the same result|reproducible results}}?; how {{do|can}} i {{set|use|fix|choose}} {{a seed|the seed}}?; {{can i|how do i}} make {{it|the answers|answers}} reproducible?; ! i need identical output on each run
Use --max-tokens to limit the length. :: how {{do|can}} i {{limit|shorten|set|control|restrict}} {{the length|the answer length|answer length|the length of answers|the number of tokens}}?; how {{do|can}} i {{get|have|make}} {{shorter answers|answers shorter|short answers|longer answers}}?; ! the replies should be cut at some length, how?
It keeps the KV cache between turns and reads only new tokens. :: why {{is mlxchat|is this|is it|are you}} {{so fast|so quick|fast|faster}}?; how does {{mlxchat|the cache|it}} {{save time|work so fast|avoid reading twice|stay fast}}?; what does {{never reads the same token twice|reading twice}} mean?; how does mlxchat use the {{cache|KV cache}}?; ! what is the trick behind the speed?
"""


def _parse_terms(params: str) -> list[Entry]:
    entries = []
    for line in _TERMS.strip().splitlines():
        names, answer = line.split(" :: ")
        terms = tuple(n.strip() for n in names.split(","))
        entries.append(Entry(answer.replace("PARAMS", params), terms=terms))
    return entries


def _parse_talk(params: str) -> list[Entry]:
    entries = []
    for line in _TALK.strip().splitlines():
        answer, patterns = line.split(" :: ")
        train: list[str] = []
        unseen: list[str] = []
        for pattern in patterns.split(";"):
            text = pattern.strip()
            if text.startswith("!"):
                unseen += expand(text[1:])
            else:
                train += expand(text)
        entries.append(
            Entry(answer.replace("PARAMS", params), tuple(dict.fromkeys(train)), tuple(unseen))
        )
    return entries


PARAMS = "4.7 million"
TERMS = _parse_terms(PARAMS)
TALK = _parse_talk(PARAMS)


def frame_term(frame: str, term: str) -> str:
    """Put a term into a frame; a plural term takes "are"."""
    plural = term.startswith("+")
    text = re.sub(r"\bT\b", lambda _: term.lstrip("+"), re.sub(r"\bV\b", "VERB", frame))
    return text.replace("VERB", "are" if plural else "is")
