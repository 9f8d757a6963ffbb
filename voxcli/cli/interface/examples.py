"""Examples on help pages and in the man page, by command."""

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("voxcli chat", "talk"),
        ('voxcli once --prompt "What is the capital of France?"', "ask one question"),
    ),
    "chat": (
        ("voxcli chat --persona tutor --language fr", "practise French"),
        ("voxcli chat --continue", "go on with the last conversation"),
        ("voxcli chat --text --no-speak", "type, for example over SSH"),
        ("voxcli chat --push-to-talk toggle --engine embedded", "in a loud room, without a GPU"),
        ("voxcli chat --wake-word hey_jarvis --control auto", "hands free, or by hotkey"),
    ),
    "control": (
        ("voxcli control toggle-mute", "what a hotkey of the desktop may run"),
        ("voxcli control --path /run/user/1000/kitchen status", "ask another chat for its state"),
    ),
    "once": (
        ("voxcli once question.wav --session kitchen", "answer a recording, remember the turn"),
        ('voxcli once notes.m4a --prompt "Summarize this." --json', "ask about a recording, for a program"),
        ("echo Hello | voxcli once --prompt -", "answer text alone"),
    ),
    "batch": (
        ("voxcli batch calls/ --out results.jsonl", "answer all recordings in a folder"),
        ("voxcli batch calls/ --out results.jsonl --resume", "continue after a stop"),
    ),
    "results": (
        ("voxcli results results.jsonl --failed", "see what failed"),
        ("voxcli results results.jsonl --format html -o page.html", "a page for a browser"),
    ),
    "sessions": (("voxcli sessions list", "see all conversations"), ("voxcli sessions show kitchen", "read one")),
    "sessions list": (("voxcli sessions list", "the last used one first"), ("voxcli sessions list --json", "as JSON")),
    "sessions show": (
        ("voxcli sessions show kitchen", "read a conversation"),
        ("voxcli sessions show kitchen --json", "as JSON"),
    ),
    "sessions export": (
        ("voxcli sessions export kitchen", "print it as Markdown"),
        ("voxcli sessions export kitchen --format json -o kitchen.json", "write it as JSON"),
    ),
    "sessions delete": (
        ("voxcli sessions delete kitchen", "delete it, after a question"),
        ("voxcli sessions delete kitchen --yes", "without a question"),
    ),
    "sessions search": (
        ("voxcli sessions search paris", "turns with this word"),
        ("voxcli sessions search -n 3 capital france --json", "the newest three with both, as JSON"),
    ),
    "sessions rename": (
        ("voxcli sessions rename kitchen cooking", "another name"),
        ('voxcli sessions rename "2026-12-01 hello" kitchen', "a name for a chat that had none"),
    ),
    "sessions fork": (
        ("voxcli sessions fork kitchen", "copy a conversation"),
        ("voxcli sessions fork kitchen --at 3 --as pantry", "its first three turns"),
    ),
    "sessions undo": (
        ("voxcli sessions undo kitchen", "forget the last turn"),
        ("voxcli sessions redo kitchen", "take that back"),
    ),
    "sessions redo": (
        ("voxcli sessions redo kitchen", "take back the last undo"),
        ("voxcli sessions show kitchen -n 1", "see the last turn"),
    ),
    "personas": (
        ("voxcli personas list", "see the ways to answer"),
        ('voxcli personas add cook --instructions "You are a cook. Be brief."', "add one"),
    ),
    "personas list": (("voxcli personas list", "names and first words"), ("voxcli personas list --json", "as JSON")),
    "personas show": (
        ("voxcli personas show tutor", "as it may stand in the settings file"),
        ("voxcli personas show interpreter:target=French --json", "with all names filled in"),
    ),
    "personas add": (
        ('voxcli personas add cook --instructions "You cook for {user}." --voice neural', "instructions and a voice"),
        ("voxcli personas add cook --instructions @cook.txt --force", "from a file, in place of the old one"),
    ),
    "facts": (
        ('voxcli facts add "name: Anna"', "tell voxcli something about you"),
        ("voxcli facts list", "see what it remembers"),
    ),
    "facts list": (("voxcli facts list", "with their numbers"), ("voxcli facts list --json", "as JSON")),
    "facts add": (
        ('voxcli facts add "likes: hiking"', "add one"),
        ("voxcli facts add - < facts.txt", "add each line of a file"),
    ),
    "facts edit": (
        ("voxcli facts edit", "open all facts in $EDITOR"),
        ("EDITOR=nano voxcli facts edit", "in another editor"),
    ),
    "facts delete": (
        ("voxcli facts delete 2 5", "forget two facts"),
        ("voxcli facts delete --all --yes", "forget everything, without a question"),
    ),
    "facts path": (
        ("voxcli facts path", "where the facts are"),
        ('cp "$(voxcli facts path)" backup.txt', "copy them"),
    ),
    "stats": (("voxcli stats kitchen", "how long replies took"), ("voxcli stats --svg stats.svg", "a picture of all")),
    "models": (("voxcli models list", "see which models are here"), ("voxcli models pull mini", "fetch one")),
    "models list": (("voxcli models list", "names, sizes, places"), ("voxcli models list --json", "as JSON")),
    "models pull": (
        ("voxcli models pull mini", "fetch Voxtral Mini"),
        ("voxcli models pull mistralai/Voxtral-Small-24B-2507", "fetch a model by its id"),
    ),
    "voices": (
        ("voxcli voices", "list the voices"),
        ('voxcli voices --say "Hello there." --voice neural --speed 160', "try one"),
    ),
    "tools": (
        ("voxcli tools list", "see what a model may call"),
        ('voxcli tools test time --args \'{"time_zone": "Asia/Tokyo"}\'', "try a tool"),
    ),
    "tools list": (("voxcli tools list", "with their approval"), ("voxcli tools list --json", "as JSON")),
    "tools test": (
        ("voxcli tools test time", "call a tool without arguments"),
        ('voxcli tools test weather --args \'{"city": "Rome"}\' --yes', "with arguments, without being asked"),
    ),
    "devices": (
        ("voxcli devices --meter --seconds 10", "see whether the microphone works"),
        ("voxcli devices --loopback", "measure the echo, and get advice"),
        ("voxcli devices --reset-pauses", "forget how long you pause between words"),
    ),
    "config": (
        ("voxcli config set voice piper:en_US-joe-medium", "change a setting"),
        ("voxcli config show", "see the settings in force"),
    ),
    "config show": (
        ("voxcli config show --persona tutor", "as TOML, with a persona"),
        ("voxcli config show --json", "as JSON"),
    ),
    "config path": (
        ("voxcli config path", "where the settings file is looked for"),
        ('cat "$(voxcli config path)"', "read it"),
    ),
    "config init": (
        ("voxcli config init", "write the default file"),
        ("voxcli config init --config - | less", "read what can be set"),
    ),
    "config set": (
        ("voxcli config set live.barge_in false", "talk without interrupting"),
        ("voxcli config set engine remote --config work.toml", "change another file"),
    ),
    "config edit": (
        ("voxcli config edit", "open the file in $EDITOR"),
        ("EDITOR=nano voxcli config edit --config work.toml", "another file, another editor"),
    ),
    "doctor": (("voxcli doctor", "can I chat?"), ("voxcli doctor --for batch --engine voxtral", "and answer many?")),
    "help": (("voxcli help", "the commands"), ("voxcli help sessions show", "one command")),
    "version": (("voxcli version", "print the version"), ("voxcli --version", "the same")),
}
