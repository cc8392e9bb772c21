"""What it takes to run Runyard elsewhere: images, and a system of containers brought up and taken down."""
