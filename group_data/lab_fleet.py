"""Values of inventories/lab_fleet.py: a small model of its own kind, tested by the backend's own command."""

lock = "lab_fleet"
models = [{"repo": "docai/plain-tiny", "revision": "main"}]
image = "docker-daemon:docai/light:1.0"
family = "custom"
smoke_command = ["python3", "/app/app.py", "--embed"]
hub = "https://lab-hub"
xet = "off"
dtype = "float32"
gpus = 0
egress = ["lab-hub:443", "10.77.1.5:443"]
model_store = "/srv/fleet"
stack = "/srv/light"
push_user = "hffleet"
waves = [1, "100%"]
soak = 0
health_deadline = 30
confirm_deadline = 20
embedding_space_change = "mixed-accepted"
bundle = "/srv/stick"
bundle_part_size = "20MB"
bundle_python = "3.13"
probe = {"url": "http://127.0.0.1:8100/embed", "body": {"query": "{query}"}, "answer": "embedding"}
