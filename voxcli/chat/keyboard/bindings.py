"""The keys of a spoken conversation, and what they do: for its help, the man page and the views."""

SPACE_KEY = {  # Keys: values of the setting `live.push_to_talk`.
    "off": "mute or unmute the microphone",
    "toggle": "talk; again to send",
    "hold": "hold it to talk; release it to send",
}
OTHER_KEYS = {
    "i": "interrupt the reply",
    "t": "type instead of talking: Enter sends, an empty line or Ctrl-C cancels",
    "e": "write in an editor instead of talking",
    "r": "repeat the last reply",
    "R": "ask the last question again, in place of its turn",
    "u": "undo the last turn: it is forgotten",
    "w": "show what the model understood of your last words",
    "c": "copy the last reply",
    "?": "list the keys",
    "q": "end the conversation",
    "Ctrl-C": "interrupt the reply; twice: end the conversation",
}
KEY_COMMANDS = {  # The commands of `voxcli.chat.commands` that keys run; the space key with push-to-talk runs others.
    " ": "toggle-mute",
    "i": "interrupt",
    "t": "type",
    "e": "edit",
    "r": "repeat",
    "u": "undo",
    "w": "understood",
    "c": "copy",
    "?": "keys",
    "q": "quit",
}
