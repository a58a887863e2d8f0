"""Everyday words that prompts are made from: short, common, and harmless in any combination."""

from __future__ import annotations

WORDS: tuple[str, ...] = tuple(
    """
    act air ant arm art ask bag bat bed bee big bird boat body book bowl box boy bread brick bridge bright brown brush
    bug build bus busy cake call calm camp car card cat chair chalk cheese child circle city clay clean clear clock
    cloth cloud coal coat coin cold color cook cool copper corn cotton cow cup dance dark day deep desk dish dog door
    dream dress drink drop drum dry duck ear early earth east easy egg empty end eye face fair family farm fast feather
    field finger fire fish flag flat floor flower fly fog food foot forest fork fox fresh friend frog fruit full garden
    gate gentle girl glad glass goat gold good grain grass green ground hair hall hand happy hat heart heavy high hill
    home honey horse hot house hungry ice iron island jar jump jungle key kind king kitchen kite lake lamp land large
    laugh leaf learn leg lemon letter light lion list little long loud lunch map market meadow meal milk mind mirror
    money moon morning mother mountain mouse mouth music name narrow neck needle nest new nice night north nose note
    ocean old onion open orange oven owl page paint paper park path pear pen pencil people pepper picture pig pillow
    plane plant plate play pocket poem pond pony pot prize proud purple queen quick quiet rabbit rain read red rest
    rice ride ring river road rock roof room root rope rose round sad sail salt sand school sea seed sheep ship shirt
    shoe shop short silver simple sing sister sky sleep slow small smile smoke snow soap sock soft song soup south
    space spoon spring square stair star stone storm story street strong sugar summer sun sweet swim table tail tall
    tea teacher tent thin thunder tiger time tooth tower town toy train tree triangle turtle valley village voice walk
    wall warm watch water wave weather west wheel whistle white wide wild wind window winter wise wolf wood wool word
    world write yard year yellow young zebra
    """.split()
)

WORDS_ZH: tuple[str, ...] = tuple(
    """
    春天 夏天 秋天 冬天 早上 晚上 中午 今天 明天 太阳 月亮 星星 天空 白云 大海 河流 高山 森林 草地 花园 树叶 石头 沙子 雨水 雪花 清风
    小鸟 小狗 小猫 大象 老虎 兔子 乌龟 金鱼 蝴蝶 蜜蜂 青蛙 山羊 骏马 苹果 香蕉 西瓜 葡萄 米饭 面包 鸡蛋 牛奶 茶水 白糖 蔬菜 豆腐
    父亲 母亲 哥哥 姐姐 弟弟 妹妹 老师 学生 朋友 医生 农民 工人 学校 教室 书包 铅笔 黑板 桌子 椅子 窗户 大门 房子 厨房 城市 村庄 道路
    桥梁 火车 飞机 轮船 汽车 电话 电脑 音乐 歌曲 图画 故事 诗歌 字典 报纸 信件 衣服 帽子 鞋子 雨伞 手表 杯子 盘子 筷子 勺子 毛巾 镜子
    红色 黄色 蓝色 绿色 白色 黑色 高兴 安静 勇敢 聪明 美丽 温暖 干净 明亮 跑步 游泳 唱歌 跳舞 读书 写字 画画 做饭 睡觉 旅行 散步 学习
    """.split()
)

NAMES: tuple[str, ...] = tuple(
    "Anna Ben Clara Daniel Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor".split()
)
NAMES_ZH: tuple[str, ...] = tuple(
    "小明 小红 小刚 小丽 小华 小芳 小军 小雪 小龙 小燕 小东 小梅 小强 小玉 小宁 小文".split()
)

# English name, Chinese measure word and noun
THINGS: tuple[tuple[str, str, str], ...] = (
    ("ball", "个", "球"), ("book", "本", "书"), ("box", "个", "盒子"), ("cup", "个", "杯子"),
    ("hat", "顶", "帽子"), ("kite", "只", "风筝"), ("lamp", "盏", "灯"), ("bag", "个", "包"),
    ("pen", "支", "笔"), ("car", "辆", "车"), ("coat", "件", "大衣"), ("chair", "把", "椅子"),
    ("boat", "条", "船"), ("flower", "朵", "花"), ("shirt", "件", "衬衫"), ("bird", "只", "鸟"),
)  # fmt: skip
COLOURS: tuple[tuple[str, str], ...] = (
    ("red", "红色"), ("blue", "蓝色"), ("green", "绿色"), ("black", "黑色"),
    ("white", "白色"), ("yellow", "黄色"), ("brown", "棕色"), ("pink", "粉色"),
)  # fmt: skip
