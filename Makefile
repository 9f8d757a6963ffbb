# make demo    set up, ask the recorded question, hear the answer
# make test    set up, run the tests
# make check   set up, check form, types and the README's commands
# make test-vllm   set up, and test the remote engine against a real vLLM (4 GB to install, once)
# make test-replica   set up, and test a random model of Mini's size on the CPU (20 GB of disk, most of an hour)
.PHONY: demo test check format test-vllm test-replica

BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
QUESTION := examples/questions/capital-of-france.flac
REPLY := demo-reply.wav
REPLICA := build/replica
# Tests of devices and conversations, which other tests beside them would disturb.
REAL_TIME := tests/chat/devices $(sort $(wildcard tests/chat/test_*.py)) tests/cli/test_chat.py tests/cli/test_devices.py tests/benchmarks/test_live.py
# In the order of the files: files with few tests would come last otherwise, and one of them takes two minutes.
IN_PARALLEL := --numprocesses auto --dist loadfile --no-loadscope-reorder

demo:
	@scripts/setup.sh demo
	@echo 'Asking the recording $(QUESTION): "What is the capital of France?"'
	@$(BIN)/voxcli once $(QUESTION) --engine embedded --no-speak --save-reply $(REPLY) --force
	@echo 'Above is the reply as text; $(REPLY) is the same reply, spoken. Play it with your player of choice.'
	@echo 'Now ask something yourself: $(BIN)/voxcli once YOUR-RECORDING.wav --engine embedded'
	@echo 'Or talk: $(BIN)/voxcli chat; $(BIN)/voxcli doctor tells whether you can.'

test:
	@scripts/setup.sh dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(IN_PARALLEL) $(addprefix --ignore=,$(REAL_TIME))
	$(BIN)/python -m pytest $(REAL_TIME)

check:
	@scripts/setup.sh dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_readme.py

test-vllm:
	@scripts/setup.sh dev
	@scripts/vllm.sh test

test-replica:
	@scripts/setup.sh dev
	@test -d $(REPLICA) || $(BIN)/python -m benchmarks.replica $(REPLICA)
	VOXTRAL_REPLICA=$(REPLICA) $(BIN)/python -m pytest tests/engines/voxtral/test_replica.py tests/engines/voxtral/test_replica_turns.py

format:
	@scripts/setup.sh dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
