"""What turns (session, utterance) into a reply: implementations of `voxcli.core.protocols.Engine`.

Nothing is imported here: each engine has heavy packages of its own.
"""
