"""Values of inventories/lab_far.py: the fleet's model, from a bundle, in stores and for a push user of its own."""

lock = "lab_far"
source = "bundle"
bundle = "/srv/stick"
models = [{"repo": "docai/plain-tiny", "revision": "main"}]
image = "docker-daemon:docai/light:1.0"
family = "custom"
smoke_command = ["python3", "/app/app.py", "--embed"]
dtype = "float32"
gpus = 0
egress = ["lab-hub:443", "10.77.1.5:443"]
model_store = "/srv/far"
stack = "/srv/light"
push_user = "hffar"
waves = ["100%"]
soak = 0
health_deadline = 30
confirm_deadline = 20
embedding_space_change = "mixed-accepted"
probe = {"url": "http://127.0.0.1:8100/embed", "body": {"query": "{query}"}, "answer": "embedding"}
